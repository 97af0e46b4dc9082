"""What a process of roles does, recorded for a while: each call with its time, and torch's operators and kernels."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a role."""

    role: str
    what: str
    """`Policy.update`"""
    begin: float
    """Seconds since 1970, by the clock of the role's node."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Recording:
    """Of one process."""

    calls: Sequence[Call]
    trace: bytes
    """Of torch's profiler, in the trace event format, as gzip."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Of all processes of a runtime."""

    processes: Mapping[str, Recording | None]
    """None for one that was started anew meanwhile."""
    cluster: list[dict[str, Any]]
    """What Ray knows of its tasks, as trace events; nothing without Ray."""


class Recorder:
    """Of this process. Used by the one thread that the roles compute in."""

    def __init__(self) -> None:
        self._profiler: Any = None
        self._calls: list[Call] = []

    def start(self) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profiler, self._calls = profile(activities=kinds, acc_events=True), []
        self._profiler.start()

    @contextmanager
    def call(self, role: str, what: str) -> Iterator[None]:
        """A call of a role in the block."""
        if self._profiler is None:
            yield
            return
        from torch.profiler import record_function

        begin, started = time.time(), time.perf_counter()
        try:
            with record_function(f"{role}: {what}"):
                yield
        finally:
            self._calls.append(Call(role, what, begin, time.perf_counter() - started))

    def stop(self) -> Recording | None:
        """None from a process that was started since the others were told to record."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return None
        profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "trace.json.gz")
            profiler.export_chrome_trace(file)
            return Recording(tuple(self._calls), Path(file).read_bytes())
