"""What the driver knows of a process while it waits for a call: whether it lives, and what else it was asked."""

import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

SECONDS_BETWEEN_PULSES = 5.0
"""Between a process's sign of life and the question for the next."""

_GRACE_SECONDS = 1.0
"""For an answer that is there, and which a driver that stood still itself has not taken in."""


class Heartbeat:
    """Signs of life of one process, which it gives while it computes, too. They are asked for while somebody waits for
    the process, and one that only starts may be silent."""

    def __init__(self, ask: Callable[[], "ray.ObjectRef[Any]"]) -> None:
        """`ask`: a call of the process that it answers at once, from another thread than the one that computes."""
        self._ask, self._lock = ask, threading.Lock()
        self._lived = False
        self._asked: ray.ObjectRef[Any] | None = ask()
        self._since = time.monotonic()
        """When the question under way was asked, or the last one answered."""

    def missed(self, seconds: float) -> bool:
        """Whether the process has left a question unanswered for longer than that. Asks the next one when it is due; a
        process that is dead counts as one that answers, as every call to it tells."""
        with self._lock:
            now = time.monotonic()
            if self._asked is None:
                if now - self._since >= SECONDS_BETWEEN_PULSES:
                    self._asked, self._since = self._ask(), now
                return False
            if self._answered(0):
                self._asked, self._since, self._lived = None, now, True
                return False
            return self._lived and now - self._since > seconds and not self._answered(_GRACE_SECONDS)

    def _answered(self, seconds: float) -> bool:
        return bool(ray.wait([self._asked], timeout=seconds, fetch_local=False)[0])


class Calls:
    """What a process was asked to do, one after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

    def add(self, pending: Any, what: str) -> None:
        """`pending`: a call with its `ref`."""
        with self._lock:
            self._made[pending] = what

    def unfinished(self) -> list[str]:
        """In the order in which they were made; the first one is what the process is at. Those whose results nobody
        wants are left out."""
        with self._lock:
            made = [(pending.ref, what) for pending, what in self._made.items()]
        refs = [ref for ref, _ in made]
        done = set(ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[0]) if refs else set()
        return [what for ref, what in made if ref not in done]


@dataclass(frozen=True, slots=True)
class Watch:
    """How a call is watched while it is waited for."""

    calls: Calls
    """Of its process."""
    heartbeats: Mapping[str, Heartbeat]
    """By the name of the handle: of its process, and of those without which it cannot come to an end."""
    seconds: float
    """deadlines.heartbeat"""

    def hung(self) -> str:
        """The name of one that gives no sign of life; empty if all do."""
        return next((name for name, heartbeat in self.heartbeats.items() if heartbeat.missed(self.seconds)), "")
