"""Calls of roles in Ray actors."""

import time
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from rlpipe.runtime.handle import DeadlineExceeded, RoleDied, Within
from rlpipe.runtime.ray_overdue import answers

T = TypeVar("T")
_FETCHING_SECONDS = 60.0


class RayPending(Generic[T]):
    """A call of a hosted role, with its deadline counted from when it was made."""

    def __init__(self, host: Any, role_name: str, what: str, ref: "ray.ObjectRef[T]", within: Within) -> None:
        self.ref = ref
        self._host, self._role_name, self._what, self._within = host, role_name, what, within
        self._started = time.monotonic()

    def result(self) -> T:
        try:
            return ray.get(self.ref, timeout=max(self._fetching_seconds(), self.seconds_left()))
        except GetTimeoutError:
            raise DeadlineExceeded(self._overdue(), self._role_name) from None
        except RayTaskError as error:
            raise _unwrapped(error, self._role_name) from None
        except RayError as error:
            # Not only RayActorError: a worker, node or object owner that died raises other kinds.
            raise RoleDied(
                f"{self._role_name} died during {self._what} ({self._within.phase}): {error}", self._role_name
            ) from None

    def seconds_left(self) -> float:
        return self._started + self._within.seconds - time.monotonic()

    def _fetching_seconds(self) -> float:
        """Time to bring the value here, when it is there in time and looked at late."""
        there, _ = ray.wait([self.ref], timeout=0, fetch_local=False)
        return _FETCHING_SECONDS if there else 0.0

    def _overdue(self) -> str:
        return (
            f"{self._role_name} did not finish {self._what} within {self._within.seconds:g} s "
            f"(phase {self._within.phase!r}, recipe key deadlines.{self._within.phase}).\n"
            f"It stands at:\n{answers([self._host.stacks.remote()])[0]}"
        )

    @classmethod
    def ready(cls, pendings: Sequence["RayPending[T]"], seconds: float) -> list["RayPending[T]"]:
        refs = [pending.ref for pending in pendings]
        ray.wait(refs, num_returns=1, timeout=seconds, fetch_local=False)
        done = set(ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[0])
        return [pending for pending in pendings if pending.ref in done]


def _unwrapped(error: RayTaskError, role_name: str) -> BaseException:
    """The role's own exception, with the remote traceback as a note: one error, not Ray's wrapping of it."""
    cause = error.cause if isinstance(error.cause, BaseException) else error
    if cause is not error:
        cause.add_note(f"raised in {role_name}:\n{error}")
    return cause
