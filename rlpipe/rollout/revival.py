"""A new process in the place of an engine that is lost, until it serves what the others serve."""

import logging
import time
from collections.abc import Callable, Generator
from typing import Any, Literal

from rlpipe.rollout.delivery import Delivered, Publication
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.backoff import rest_before
from rlpipe.runtime.handle import DeadlineExceeded, Handle, Pending, RoleDied

logger = logging.getLogger(__name__)

SECONDS_PER_LOOK = 1.0
"""Between two looks whether the process has a place on the cluster."""
FIRST_REMINDER_SECONDS = 60.0
"""After this it is told again that there is none; each further time it takes twice as long."""


class Revival:
    """Restart, weights, proof: one step at a time, so that the other engines are heard meanwhile.

    If the engine's node is gone and no other has room, it waits for one: that is nobody's failure, and all begins when
    a node joins.
    """

    def __init__(
        self,
        engine: Handle[RolloutWorker],
        published: Callable[[], Publication | Literal["later"] | None],
        attempt: int,
    ) -> None:
        """`published` is what the other engines serve at the time of asking, or "later" while that is still to come;
        `attempt` counts from 1."""
        self.began = time.monotonic()
        self.begins = self.began + rest_before(attempt)
        self.delivered: Delivered | None = None
        """The proof, once it is there; None for engines to which nothing is published."""
        self.pending: Pending[Any] | None = None
        """What it waits for; None while it rests."""
        self.lacking = ""
        """What the cluster has no room for, while that is so."""
        self.lacking_since = 0.0
        self._looks = self._reminds = 0.0
        self._engine, self._published = engine, published
        self._steps = self._run()

    def go_on(self, heard: bool) -> bool:
        """Take the next step, if it is time, and what is waited for is `heard`; whether the engine serves now. Raises
        what the engine raised."""
        now = time.monotonic()
        if now < self.begins or not self._has_place(now) or (self.pending is not None and not heard):
            return False
        try:
            self.pending = next(self._steps)
        except StopIteration:
            return True
        except Exception as fault:  # whoever this is told of may mend it: then all begins anew
            self._begin_anew()
            if not self._node_is_gone(fault):
                raise
        return False

    def _node_is_gone(self, fault: Exception) -> bool:
        """Found out while the process started there: nothing that another start would count as."""
        lost = isinstance(fault, RoleDied | DeadlineExceeded) and fault.who in ("", self._engine.name)
        return lost and self._engine.moved()

    def _begin_anew(self) -> None:
        self._steps, self.pending, self.delivered = self._run(), None, None

    def _has_place(self, now: float) -> bool:
        if now >= self._looks:
            self._looks = now + SECONDS_PER_LOOK
            before, self.lacking = self.lacking, self._engine.lacking()
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
            "%s waits for %s It is started when a node joins%s.", self._engine.name, self.lacking, for_how_long
        )

    def _run(self) -> Generator[Pending[Any] | None, None, None]:
        built = self._engine.restart()
        yield built
        built.result()
        served = None
        # Others may have been published to while this one took its weights.
        while (publication := self._published()) is not served:
            if publication == "later":
                yield None
                continue
            try:
                self.delivered = yield from publication.deliver(self._engine)
            except Exception:
                if self._published() is publication:
                    raise
                continue  # of weights that are not wanted any more
            served = publication
