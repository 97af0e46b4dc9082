"""A new process in the place of an engine that is lost, until it serves what the others serve."""

import time
from collections.abc import Callable, Generator
from typing import Any

from rlpipe.rollout.delivery import Delivered, Publication
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.backoff import rest_before
from rlpipe.runtime.handle import Handle, Pending


class Revival:
    """Restart, weights, proof: one step at a time, so that the other engines are heard meanwhile."""

    def __init__(
        self, engine: Handle[RolloutWorker], published: Callable[[], Publication | None], attempt: int
    ) -> None:
        """`published` is what the other engines serve at the time of asking; `attempt` counts from 1."""
        self.began = time.monotonic()
        self.begins = self.began + rest_before(attempt)
        self.delivered: Delivered | None = None
        """The proof, once it is there; None for engines to which nothing is published."""
        self.pending: Pending[Any] | None = None
        """What it waits for; None while it rests."""
        self._engine, self._published = engine, published
        self._steps = self._run()

    def go_on(self) -> bool:
        """Take the next step, if it is time; whether the engine serves now. Raises what the engine raised."""
        if time.monotonic() < self.begins:
            return False
        try:
            self.pending = next(self._steps)
        except StopIteration:
            return True
        except Exception:  # whoever this is told of may mend it: then all begins anew
            self._steps, self.pending, self.delivered = self._run(), None, None
            raise
        return False

    def _run(self) -> Generator[Pending[Any], None, None]:
        built = self._engine.restart()
        yield built
        built.result()
        served = None
        # Others may have been published to while this one took its weights.
        while (publication := self._published()) is not served:
            try:
                self.delivered = yield from publication.deliver(self._engine)
            except Exception:
                if self._published() is publication:
                    raise
                continue  # of weights that are not wanted any more
            served = publication
