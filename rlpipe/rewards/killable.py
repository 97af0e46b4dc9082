"""Code that can hang, run where it can be killed: a child process with a pipe and a deadline.

Not signals: those work in the main thread only, and a reward stage has threads and lives in Ray actors. Not fork: the
child would inherit the locks and the state of torch and Ray. Not multiprocessing's spawn: it runs the parent's main
module once more. `subprocess` starts `child.py` in a fresh interpreter; what it imports is paid once, in the
background, before the first call needs it, and after a kill the successor starts at once.
"""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from rlpipe.data.flow import Failure
from rlpipe.recipe import secrets
from rlpipe.rewards import child
from rlpipe.rewards.reward import Allowance, RewardUnusable
from rlpipe.runtime import tracebacks


class Caller(Protocol):
    """Calls one function somewhere: `Pool` in killable processes, `InProcess` right here."""

    def start(self) -> None: ...

    def ready(self) -> None:
        """Wait until the function is loaded. Raises `RewardUnusable`."""

    def call(self, request: Any, limit: float, allowance: Allowance, rows: int = 1) -> Any | Failure:
        """The function's answer, within `limit` seconds and this call's share of the allowance."""

    def close(self) -> None: ...


class Killable:
    """One child process. Used by one thread at a time."""

    def __init__(
        self,
        name: str,
        factory: str,
        options: dict[str, Any],
        start_deadline: float,
        what: str = "reward",
        secrets: Sequence[str] = (),
    ):
        """`secrets`: the variables with keys that it gets; others stay here."""
        self._name, self._what = name, f"{what} {name!r}"
        self._secrets = tuple(secrets)
        self._target = (factory, options)
        self._start_deadline = start_deadline
        self._process: subprocess.Popen | None = None
        self._loaded = False
        self._closed = False
        self._output: deque[str] = deque(maxlen=8)

    def start(self) -> None:
        """Begin a fresh process and return at once."""
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rlpipe.rewards.child", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=_environment(self._secrets),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is the driver's to handle; and kill takes grandchildren too
        )
        theirs.close()
        self._connection: Connection = Connection(ours.detach())
        self._loaded = False
        self._relay = threading.Thread(target=self._print, args=(self._process.stdout,), daemon=True)
        self._relay.start()
        self._connection.send(self._target)

    def ready(self) -> None:
        """Wait until the function is loaded. Raises `RewardUnusable`."""
        if self._process is None or (self._loaded and self._process.poll() is not None):
            self.start()  # never started, or died while idle
        if self._loaded:
            return
        try:
            if not self._connection.poll(self._start_deadline):
                self.kill()
                raise RewardUnusable(
                    f"{self._what}: its process did not start within deadlines.start={self._start_deadline:g} s"
                )
            kind, why = self._connection.recv()
        except (EOFError, OSError):
            raise RewardUnusable(f"{self._what}: its process {self._death()} while starting") from None
        if kind == "unusable":
            raise RewardUnusable(secrets.hide(f"{self._what}: {self._explained(why)}"))
        self._loaded = True

    def call(self, request: Any, seconds: float) -> Any | Failure:
        """The function's answer; a `Failure` if it raises, dies or is late, and in the latter cases a fresh process."""
        try:
            self._connection.send((request, seconds))
            if not self._connection.poll(seconds):
                self._renew()
                return Failure("deadline", f"no answer within {seconds:.3g} s; its process was killed")
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            death = self._death()
            self._renew()
            return Failure("crashed", f"its process {death}")
        return Failure("exception", self._explained(value)) if kind == "raised" else value

    def _explained(self, why: str) -> str:
        """With the way to a key that is missing there and is here."""
        kept = [name for name in os.environ if secrets.is_secret(name) and name not in self._secrets and name in why]
        return f"{why}. {kept[0]} is kept from its process: name it in `secrets` of this {self._what}" if kept else why

    def kill(self) -> None:
        """End the process and everything it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """Kill, for good. A thread that is waiting inside `call` gets a Failure."""
        self._closed = True
        self.kill()

    def _renew(self) -> None:
        self.kill()
        self._connection.close()
        if not self._closed:
            self.start()

    def _death(self) -> str:
        """How the process ended, with the last it printed."""
        self.kill()
        self._relay.join(timeout=1)
        code = self._process.returncode
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        return how + (f", having printed: {' / '.join(self._output)}" if self._output else "")

    def _print(self, stream) -> None:
        """Show what the function prints, through this process's own stderr: a live terminal view stays whole."""
        with stream:
            for line in stream:
                text = secrets.hide(line.decode(errors="replace").rstrip())
                self._output.append(text)
                print(f"[{self._name}] {text}", file=sys.stderr)


def _environment(allowed: Sequence[str]) -> dict[str, str]:
    """Ours without Ray's and without keys but the allowed ones, with this process's import path, and one thread:
    verifiers must not take the cores of the engines."""
    kept = {key: value for key, value in secrets.without(os.environ, allowed).items() if not key.startswith("RAY_")}
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


class Pool:
    """`processes` killable processes of one function. `what` it is stands in errors before its name. `secrets`: the
    variables with keys that they get."""

    def __init__(
        self,
        name: str,
        factory: str,
        options: dict[str, Any],
        processes: int,
        start_deadline: float,
        what: str = "reward",
        secrets: Sequence[str] = (),
    ):
        target = (name, factory, options, start_deadline, what, secrets)
        self._all = [Killable(*target) for _ in range(processes)]
        self._idle: queue.LifoQueue[Killable] = queue.LifoQueue()
        for worker in self._all:
            self._idle.put(worker)

    def start(self) -> None:
        for worker in self._all:
            worker.start()

    def ready(self) -> None:
        held = [self._idle.get() for _ in self._all]
        try:
            for worker in held:
                worker.ready()
        finally:
            for worker in held:
                self._idle.put(worker)

    def call(self, request: Any, limit: float, allowance: Allowance, rows: int = 1) -> Any | Failure:
        seconds = allowance.share(limit, rows)
        if seconds <= 0:
            return Failure("deadline", f"the group's deadlines.reward={allowance.seconds:g} s were used up before")
        worker = self._idle.get()  # whoever holds one gives it back within its own deadline
        try:
            worker.ready()
            begin = time.monotonic()
            result = worker.call(request, seconds)
            allowance.spend(time.monotonic() - begin)
            return result
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        for worker in self._all:
            worker.close()


class InProcess:
    """The same calls in this process and thread, without a deadline: `--debug`, where breakpoint() must work. What a
    call raises is a failure here, too, and is shown where it happens."""

    def __init__(self, name: str, factory: str, options: dict[str, Any], what: str = "reward"):
        self._what = f"{what} {name!r}"
        self._target = (factory, options)
        self._function: Callable[[Any], Any] | None = None
        self._shown: set[str] = set()

    def start(self) -> None: ...

    def ready(self) -> None:
        if self._function is None:
            try:
                self._function = child.load(*self._target)
            except Exception as error:
                raise RewardUnusable(f"{self._what}: {child.describe(error)}") from error

    def call(self, request: Any, limit: float, allowance: Allowance, rows: int = 1) -> Any | Failure:
        self.ready()
        kind, value = child.answer(self._function, request, self._show)
        return Failure("exception", value) if kind == "raised" else value

    def close(self) -> None: ...

    def _show(self, error: BaseException) -> None:
        """Once for each line of code: a call that fails is repeated row by row."""
        lines = tracebacks.clean(error)
        place = child.place_of(error) or lines
        if place not in self._shown:
            self._shown.add(place)
            print(f"{self._what} failed, as it may again without being shown:\n{lines}", file=sys.stderr, flush=True)
