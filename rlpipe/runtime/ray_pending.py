"""Calls of roles in Ray actors."""

import time
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from rlpipe.runtime import ray_overdue, tracebacks
from rlpipe.runtime.handle import DeadlineExceeded, NotStarted, RoleDied, Silent, Within
from rlpipe.runtime.ray_heartbeat import Watch

T = TypeVar("T")
STARTING = "start"
"""The phase in which a process comes up and builds its roles."""
_FETCHING_SECONDS = 60.0
_SECONDS_PER_LOOK = 1.0
"""How long a call is waited for before its process, and those it hangs on, are looked after."""


class RayPending(Generic[T]):
    """A call of a hosted role, with its deadline counted from when it was made."""

    def __init__(
        self,
        host: Any,
        role_name: str,
        what: str,
        ref: "ray.ObjectRef[T]",
        within: Within,
        watch: Watch | None = None,
    ) -> None:
        """`watch`: of a call that waits its turn in the process, and whose process is to give signs of life."""
        self.ref, self.watch = ref, watch
        self._host, self._role_name, self._what, self._within = host, role_name, what, within
        self._started = time.monotonic()
        self._hung, self._next_look = "", 0.0
        if watch is not None:
            watch.calls.add(self, what)

    def result(self) -> T:
        if not self.ready([self], max(0.0, self.seconds_left())):
            raise self.late()
        if self._hung and not _finished([self], 0.0):
            raise Silent(self._silence(), self._hung)
        try:
            return ray.get(self.ref, timeout=max(_FETCHING_SECONDS, self.seconds_left()))
        except GetTimeoutError:
            raise self.late() from None
        except RayTaskError as error:
            raise _unwrapped(error, self._role_name) from None
        except RayError as error:
            # Not only RayActorError: a worker, node or object owner that died raises other kinds.
            raise RoleDied(
                f"{self._role_name} died during {self._what} ({self._within.phase}): {error}", self._role_name
            ) from None

    def late(self) -> DeadlineExceeded:
        """What to raise when it has not come within its deadline."""
        kind = NotStarted if self._within.phase == STARTING else DeadlineExceeded
        return kind(self._overdue(), self._role_name)

    def seconds_left(self) -> float:
        return self._started + self._within.seconds - time.monotonic()

    @classmethod
    def ready(cls, pendings: Sequence["RayPending[T]"], seconds: float) -> list["RayPending[T]"]:
        """See `Pending.ready`. Those whose process hangs are among them."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            done = _finished(pendings, max(0.0, min(left, _SECONDS_PER_LOOK)))
            # One that hangs is told of, however much the others have to say.
            finished, now = set(map(id, done)), time.monotonic()
            hung = [pending for pending in pendings if id(pending) not in finished and pending._hangs(now)]
            if done or hung or left <= _SECONDS_PER_LOOK:
                return done + hung

    def _hangs(self, now: float) -> bool:
        """Whether its process gives no sign of life, or one that it cannot come to an end without."""
        if not self._hung and self.watch is not None and now >= self._next_look:
            # Among many calls some are finished all the time; signs of life take seconds anyway.
            self._next_look = now + _SECONDS_PER_LOOK
            self._hung = self.watch.hung()
        return bool(self._hung)

    def _silence(self) -> str:
        return (
            f"{self._hung} gave no sign of life within {self.watch.seconds:g} s (recipe key deadlines.heartbeat), and "
            f"{self._role_name} was to finish {self._what} (phase {self._within.phase!r}).\n"
            f"{self._surroundings()}"
        )

    def _overdue(self) -> str:
        [stack] = ray_overdue.answers([self._host.stacks.remote()])
        return (
            f"{self._role_name} did not finish {self._what} within {self._within.seconds:g} s "
            f"(phase {self._within.phase!r}, recipe key deadlines.{self._within.phase}).\n"
            f"{self._surroundings()}\nIt stands at:\n{stack}"
        )

    def _surroundings(self) -> str:
        """What else was asked of the process, and of the cluster."""
        unfinished = [] if self.watch is None else self.watch.calls.unfinished()
        return f"{ray_overdue.queue(unfinished)}\n{ray_overdue.cluster()}"


def _finished(pendings: Sequence[RayPending[T]], seconds: float) -> list[RayPending[T]]:
    refs = [pending.ref for pending in pendings]
    ray.wait(refs, num_returns=1, timeout=seconds, fetch_local=False)
    done = set(ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[0])
    return [pending for pending in pendings if pending.ref in done]


def _unwrapped(error: RayTaskError, role_name: str) -> BaseException:
    """The role's own exception, and not Ray's wrapping of it. `tracebacks.told` has the role, its node and process, and
    the lines there."""
    cause = error.cause if isinstance(error.cause, BaseException) else error
    lines = tracebacks.kept_of(cause) or f"on node {error.ip}, in process {error.pid}.\n{error}"
    tracebacks.attach(cause, f"{role_name} failed, {lines}")
    return cause
