"""Roles in the calling process: `rlpipe run --debug`.

Calls run to the end in the caller's thread, so a breakpoint anywhere stops the world. An exception is kept for
`result`, as it would be remotely; only who quits the debugger is not kept waiting by other calls.
"""

import bdb
import gc
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from rlpipe.runtime.handle import Handle, Within
from rlpipe.runtime.recorder import Recorded, Recorder
from rlpipe.runtime.roles import RoleSpec, seats_at
from rlpipe.runtime.threads import set_threads

T = TypeVar("T")


class LocalPending(Generic[T]):
    """A call that has already run."""

    def __init__(self, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._error: BaseException | None = None
        try:
            self._value = function(*(_value(a) for a in args), **{k: _value(v) for k, v in kwargs.items()})
        except bdb.BdbQuit:
            raise
        except Exception as error:  # kept for result(), where a remote call would raise it
            self._error = error

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value

    def seconds_left(self) -> float:
        return 0.0

    @classmethod
    def ready(cls, pendings: Sequence["LocalPending[T]"], seconds: float) -> list["LocalPending[T]"]:
        return list(pendings)


def _value(argument: Any) -> Any:
    return argument.result() if isinstance(argument, LocalPending) else argument


class LocalHandle:
    """A role object in this process."""

    begun, node = True, ""

    def __init__(
        self, name: str, role: Any, again: Callable[[], Any] | None = None, recorder: Recorder | None = None
    ) -> None:
        """`again` builds a role in the place of this one. `recorder` is this process's."""
        self.name = name
        self._role, self._again, self._recorder = role, again, recorder or Recorder()

    def call(self, within: Within, method: Callable[..., T], /, *args: Any, **kwargs: Any) -> LocalPending[T]:
        with self._recorder.call(self.name, method.__qualname__):
            # Looked up by name, so that a subclass of the role is honoured as it would be remotely.
            return LocalPending(getattr(self._role, method.__name__), args, kwargs)

    def pulse(self, within: Within) -> LocalPending[int]:
        return LocalPending(os.getpid, (), {})

    def lacking(self) -> str:
        return ""

    def moved(self) -> bool:
        return False

    def restart(self) -> LocalPending[None]:
        if self._again is None:
            raise TypeError(f"{self.name} has nothing that could take its place")
        self.close()
        return LocalPending(lambda: self.hold(self._again()), (), {})

    def hold(self, role: Any) -> None:
        """Another role object in the place of this one."""
        self._role = role

    def close(self) -> None:
        """Let the role go; one that holds more than memory says so by a `close` of its own."""
        role, self._role = self._role, None
        if hasattr(role, "close"):
            role.close()


class LocalStarted:
    """Roles that were built while they were started."""

    def __init__(self, handles: dict[str, list[Handle[Any]]], restart: Callable[[Sequence[str]], None]) -> None:
        self.handles, self.restart = handles, restart

    def ready(self) -> None:
        """They are."""


class LocalRuntime:
    """One process for everything; every role has exactly one seat."""

    def __init__(self) -> None:
        self._handles: list[LocalHandle] = []
        self._roles: dict[str, Any] = {}
        self._recorder = Recorder()

    def start(self, roles: list[RoleSpec]) -> LocalStarted:
        handles = {spec.name: self._start(spec) for spec in roles}

        def restart(names: Sequence[str]) -> None:
            for name in names:
                handles[name].close()
            for spec in roles:
                if spec.name in names:
                    handles[spec.name].hold(self._built(spec))

        return LocalStarted({name: [handle] for name, handle in handles.items()}, restart)

    def _start(self, spec: RoleSpec) -> LocalHandle:
        os.environ.update(spec.environment)
        set_threads(spec.threads, sharing=1)  # one process: the role started last decides
        again = None if spec.again is None else partial(spec.role, *spec.again)
        handle = LocalHandle(spec.name, self._built(spec), again, self._recorder)
        self._handles.append(handle)
        return handle

    def _built(self, spec: RoleSpec) -> Any:
        [seat] = seats_at([("here", "127.0.0.1", free_port())])
        host = [self._roles[spec.host]] if spec.host else []
        role = self._roles[spec.name] = spec.role(*spec.arguments(seat), *host)
        return role

    def stop(self) -> None:
        for handle in self._handles:
            handle.close()
        self._handles, self._roles = [], {}
        gc.collect()  # models sit in reference cycles; the next roles need their memory

    def record(self) -> None:
        self._recorder.start()

    def recorded(self) -> Recorded:
        return Recorded({"process": self._recorder.stop()}, [])


def free_port() -> int:
    """A TCP port that is free on this node now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
