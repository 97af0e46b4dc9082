"""Facts about this machine and what is installed on it, found without importing anything heavy into this process."""

import importlib.metadata as metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

IMPORT_DEADLINE_S = 120
LOADED_TOGETHER = ("import torch, transformers, deepspeed, ray", "import torch; from vllm import LLM")


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_mib: int
    driver: str


def installed_versions() -> dict[str, str]:
    named = [(dist.metadata["Name"], dist.version) for dist in metadata.distributions()]
    return {canonicalize_name(name): version for name, version in named if name}


def rlpipe_requirements() -> list[Requirement] | None:
    """What the installed rlpipe asks for on this Python, extras left out."""
    try:
        lines = metadata.requires("rlpipe") or []
    except metadata.PackageNotFoundError:
        return None
    needs = [Requirement(line) for line in lines]
    return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def file_of(package: str, path: str) -> str:
    """The text of one file of an installed package, or nothing."""
    try:
        return Path(metadata.distribution(package).locate_file(path)).read_text()
    except (metadata.PackageNotFoundError, FileNotFoundError):
        return ""


def torch_cuda() -> str | None:
    """The CUDA version that torch was built for. Read, not imported: this must work where importing torch does not."""
    found = re.search(r"^cuda\b[^=]*= '([\d.]+)'", file_of("torch", "torch/version.py"), re.MULTILINE)
    return found and found[1]


def import_errors() -> list[str]:
    """The last line of each failing import's error. All are tried side by side, each in a process of its own."""
    tries = [(code, start_python(code)) for code in LOADED_TOGETHER]
    return [error for code, process in tries if (error := import_error(code, process))]


def start_python(code: str) -> subprocess.Popen[str]:
    quiet = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def import_error(code: str, process: subprocess.Popen[str]) -> str:
    try:
        _, errors = process.communicate(timeout=IMPORT_DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"{code!r} took longer than {IMPORT_DEADLINE_S} s"
    if process.returncode == 0:
        return ""
    return errors.strip().splitlines()[-1] if errors.strip() else f"{code!r} ended with exit code {process.returncode}"


def command(program: str) -> str:
    """What a shell in this folder starts a program of this environment with: its name where that finds it, else its
    path. `make demo` leaves the environment inactive."""
    ours = os.path.join(sysconfig.get_path("scripts"), program)
    found = shutil.which(program)
    if not os.path.exists(ours) or (found and os.path.abspath(found) == ours):
        return program
    beneath = os.path.relpath(ours)
    return shlex.quote(min((path for path in (ours, beneath) if os.sep in path), key=len))


def find_gpus() -> list[Gpu]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    return parse_gpus(answer.stdout) if answer.returncode == 0 else []


def parse_gpus(csv: str) -> list[Gpu]:
    rows = [[cell.strip() for cell in line.split(",")] for line in csv.splitlines() if line.strip()]
    return [Gpu(name, int(memory), driver) for name, memory, driver in rows]


def free_memory() -> int:
    """What is free for us: the machine's, or less where a container sets a limit."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    free = int(found[1]) * 1024 if found else 0
    return min(free, container_memory(Path("/sys/fs/cgroup"), free))


def container_memory(cgroup: Path, otherwise: int) -> int:
    try:
        limit, used = (cgroup / "memory.max").read_text(), (cgroup / "memory.current").read_text()
    except OSError:
        return otherwise
    return otherwise if limit.strip() == "max" else int(limit) - int(used)


def shared_memory_size() -> int | None:
    path = Path("/dev/shm")
    return shutil.disk_usage(path).total if path.is_dir() else None
