"""A new process in the place of one that is lost, until it does what that did."""

import logging
import time
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

from rlpipe.runtime.backoff import rest_before
from rlpipe.runtime.handle import DeadlineExceeded, Handle, Pending, RoleDied

logger = logging.getLogger(__name__)

T = TypeVar("T")
Steps = Generator[Pending[Any] | None, None, T]
"""Yields what is waited for, or None to be called again soon."""

SECONDS_PER_LOOK = 1.0
"""Between two looks whether the process has a place on the cluster."""
FIRST_REMINDER_SECONDS = 60.0
"""After this it is told again that there is none; each further time it takes twice as long."""


def restarted(handle: Handle[Any]) -> Steps[None]:
    """The role, built anew in another process."""
    built = handle.restart()
    yield built
    built.result()


class Revival(Generic[T]):
    """One step at a time, so that others are heard meanwhile.

    If the node is gone and no other has room, it waits for one: that is nobody's failure, and all begins when a node
    joins.
    """

    def __init__(self, handle: Handle[Any], steps: Callable[[], Steps[T]], attempt: int) -> None:
        """`steps` bring another process to where the lost one was, from its start on; `attempt` counts from 1."""
        self.began = time.monotonic()
        self.begins = self.began + rest_before(attempt)
        self.result: T | None = None
        """What the steps came to, once they are done."""
        self.pending: Pending[Any] | None = None
        """What it waits for; None while it rests."""
        self.lacking = ""
        """What the cluster has no room for, while that is so."""
        self.lacking_since = 0.0
        self._looks = self._reminds = 0.0
        self._handle, self._begun = handle, steps
        self._steps = steps()

    def go_on(self, heard: bool) -> bool:
        """Take the next step, if it is time, and what is waited for is `heard`; whether all are done. Raises what a
        step raised."""
        now = time.monotonic()
        if now < self.begins or not self._has_place(now) or (self.pending is not None and not heard):
            return False
        try:
            self.pending = next(self._steps)
        except StopIteration as end:
            self.result = end.value
            return True
        except Exception as fault:  # whoever this is told of may mend it: then all begins anew
            self._begin_anew()
            if not self._node_is_gone(fault):
                raise
        return False

    def _node_is_gone(self, fault: Exception) -> bool:
        """Found out while the process started there: nothing that another start would count as."""
        lost = isinstance(fault, RoleDied | DeadlineExceeded) and fault.who in ("", self._handle.name)
        return lost and self._handle.moved()

    def _begin_anew(self) -> None:
        self._steps, self.pending = self._begun(), None

    def _has_place(self, now: float) -> bool:
        if now >= self._looks:
            self._looks = now + SECONDS_PER_LOOK
            before, self.lacking = self.lacking, self._handle.lacking()
            if self.lacking and not before:
                self._begin_anew()
                self.lacking_since = self._reminds = now
            if self.lacking and now >= self._reminds:
                self._tell(now - self.lacking_since)
        return not self.lacking

    def _tell(self, waited: float) -> None:
        self._reminds += max(FIRST_REMINDER_SECONDS, waited)
        for_how_long = f", for {waited:.0f} s now" if waited else ""
        logger.warning(
            "%s waits for %s It is started when a node joins%s.", self._handle.name, self.lacking, for_how_long
        )
