"""Follows a sandboxed process to its end: wall clock, memory of all its processes, output that may have no end."""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from typing import NamedTuple

TICK = 0.05
AFTERWARDS = 2.0
"""Seconds to wait for the pipes of what has been killed."""
CHUNK = 1 << 16


class Ended(NamedTuple):
    """How a process ended, and the first of what it wrote."""

    code: int
    out: bytes
    errors: bytes
    status: bytes
    stopped: str
    """`deadline`, `memory` or `output` if it had to be killed for that, else empty."""


class Watch:
    """One process in a session of its own, with pipes for stdout, stderr and status."""

    def __init__(self, process: subprocess.Popen, status: int, memory: int, output: int):
        self._process = process
        self._memory, self._room = memory, output
        self._read: dict[int, bytearray] = {}
        self._selector = selectors.DefaultSelector()
        self._fds = [process.stdout.fileno(), process.stderr.fileno(), status]
        for fd in self._fds:
            os.set_blocking(fd, False)
            self._read[fd] = bytearray()
            self._selector.register(fd, selectors.EVENT_READ)
        self._exit = os.pidfd_open(process.pid)
        self._selector.register(self._exit, selectors.EVENT_READ)

    def follow(self, seconds: float) -> Ended:
        """Returns once the process is gone, with all that it started: killed after `seconds`, or for a limit."""
        try:
            stopped = self._until_it_ends(time.monotonic() + seconds)
        finally:
            self._kill()
            self._drain(time.monotonic() + AFTERWARDS)
            self._selector.close()
            os.close(self._exit)
        out, errors, status = (bytes(self._read[fd]) for fd in self._fds)
        # What it printed last may be read only now.
        return Ended(self._process.returncode, out, errors, status, stopped or ("output" if self._room < 0 else ""))

    def _until_it_ends(self, deadline: float) -> str:
        next_look = time.monotonic() + TICK
        while (now := time.monotonic()) < deadline:
            for key, _ in self._selector.select(min(deadline - now, TICK)):
                if key.fd == self._exit:
                    return ""
                self._take(key.fd)
            if self._room < 0:
                return "output"
            if time.monotonic() > next_look:
                if resident(self._process.pid) > self._memory:
                    return "memory"
                next_look = time.monotonic() + TICK
        return "deadline"

    def _take(self, fd: int) -> None:
        """Keep what there is room for, forget the rest."""
        with contextlib.suppress(BlockingIOError):
            data = os.read(fd, CHUNK)
            if not data:
                self._selector.unregister(fd)
            self._read[fd] += data[: max(self._room, 0)]
            self._room -= len(data)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _drain(self, deadline: float) -> None:
        """What was written before the end. The pipes close when the last process is gone."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(self._exit)
        while self._selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                self._take(key.fd)


def resident(pid: int) -> int:
    """Bytes of memory that a process and all below it hold, their files aside. What forks share counts for each."""
    total = 0
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/status") as file:
            total = sum(int(line.split()[1]) * 1024 for line in file if line.startswith(("RssAnon:", "RssShmem:")))
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                total += sum(resident(int(child)) for child in file.read().split())
    return total
