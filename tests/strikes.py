"""Roles of an RL run that are killed at the boundaries of its steps."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rlpipe.observe.events import EventLog
from rlpipe.runtime.handle import Handle, RoleDied, Within
from rlpipe.runtime.local import LocalRuntime

BOUNDARIES = ("generate", "score", "prepare", "train", "record", "publish", "evaluate", "checkpoint")
"""The phases of a step, in their order; something is struck as one begins."""

SOON = Within("heartbeat", 30.0)
Plan = Mapping[tuple[str, int], str]
"""Who is struck, by phase and step."""


def at_each_boundary(role: str) -> Plan:
    """Once at each, from step 2 on: each time in another step, so that no two are losses in a row."""
    return {(phase, step): role for step, phase in enumerate(BOUNDARIES, start=2)}


class Dead:
    """What is left of a role whose process is gone: every call tells so."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method == "close":
            raise AttributeError(method)

        def gone(*_: Any, **__: Any) -> None:
            raise RoleDied(f"{self._name} was killed by the test", self._name)

        return gone


def let_go(handle: Handle[Any]) -> None:
    """A role in this process is gone, with all it had in hand."""
    handle.hold(Dead(handle.name))


def kill(handle: Handle[Any]) -> None:
    """SIGKILL to the process of a role."""
    os.kill(handle.pulse(SOON).result(), signal.SIGKILL)


def carry_out(
    plan: Plan,
    monkeypatch: Any,
    strike: Callable[[Handle[Any]], None] = let_go,
    runtime: type = LocalRuntime,
    beside: Callable[[str, int], None] = lambda phase, step: None,
) -> Sequence[tuple[str, int]]:
    """What of the plan has come to pass, as it does; `beside` is called each time, too."""
    handles: dict[str, list[Handle[Any]]] = {}
    start, real, struck = runtime.start, EventLog.phase, []

    def start_and_note(self: Any, roles: Any) -> Any:
        started = start(self, roles)
        handles.update(started.handles)
        return started

    @contextmanager
    def phase_and_strike(self: EventLog, name: str, step: int | None = None, says: str | None = None) -> Any:
        with real(self, name, step, says):
            if (name, step) in plan and (name, step) not in struck:
                struck.append((name, step))
                strike(handles[plan[name, step]][-1])
                beside(name, step)
            yield

    monkeypatch.setattr(runtime, "start", start_and_note)
    monkeypatch.setattr(EventLog, "phase", phase_and_strike)
    return struck
