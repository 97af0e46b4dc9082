"""One cell in a process of its own: started, watched, ended."""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from rlpipe.observe.events import NAME as EVENTS
from rlpipe.pipelines.study.processes import end, family, peak_bytes

GRACE = 30.0
"""Seconds a run has to stop cleanly: to write its report and leave Ray."""
SECONDS_PER_LOOK = 1.0
"""Between looks at its memory: each goes through all of /proc, which on two cores a run would feel."""


class Child:
    """A running cell. It leads a session of its own, so that Ctrl-C reaches it only through `interrupt`."""

    def __init__(self, command: Sequence[str], run_dir: Path, log: Path, keep_open: Sequence[int] = ()) -> None:
        self.run_dir, self.log = run_dir, log
        self.peak_bytes = 0
        self.began = time.monotonic()
        self._looked = 0.0
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                pass_fds=keep_open, env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def poll(self) -> int | None:
        """The exit code, once it has ended; looks at its memory now and then."""
        if time.monotonic() - self._looked >= SECONDS_PER_LOOK:
            self._looked = time.monotonic()
            self.peak_bytes = max(self.peak_bytes, peak_bytes(family(self._process.pid)))
        code = self._process.poll()
        if code is not None:
            self.kill()  # a helper it left behind
        return code

    def silent_seconds(self) -> float:
        """Since it last wrote an event or a line."""
        files = [self.log, *self.run_dir.glob(EVENTS), *self.run_dir.glob(f"stages/*/{EVENTS}")]
        return time.time() - max(file.stat().st_mtime for file in files)

    def interrupt(self) -> None:
        """As Ctrl-C would."""
        end([self._process.pid], signal.SIGINT)

    def wait(self, seconds: float = GRACE) -> None:
        """Give it time to stop after `interrupt`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def kill(self) -> None:
        """End whatever of it is left, children included."""
        end(family(self._process.pid), signal.SIGKILL)
        self._process.wait()

    def last_lines(self, count: int) -> list[str]:
        """The end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.strip()][-count:]
