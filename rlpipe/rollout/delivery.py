"""One version of a model's weights on its way to engines, and the proof that it arrived."""

import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from rlpipe.data.flow import Tokens
from rlpipe.rollout.carriers import Carrier
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.handle import Handle, Pending, Within
from rlpipe.weights.payload import Exported
from rlpipe.weights.verify import Verification, Verifier


@dataclass(frozen=True, slots=True)
class Delivered:
    """An engine serves a version, and has proven it."""

    found: Verification | None
    """How far it is from the trainer; None where there is no trainer to agree with."""
    at: float
    """`time.monotonic()` when the weights were in the engine."""


def put_to_sleep(engine: Handle[RolloutWorker], within: Within) -> Generator[Pending[Any], None, None]:
    """As `Publication.deliver`, for an engine that is to give back its GPU."""
    sleeping = engine.call(within, RolloutWorker.sleep)
    yield sleeping
    sleeping.result()


class Deliverable(Protocol):
    """Weights that every engine of a model is to serve."""

    def deliver(self, engine: Handle[RolloutWorker]) -> Generator[Pending[Any], None, Delivered]:
        """Yields what it waits for. Raises `WeightSyncError`."""


@dataclass(frozen=True)
class Publication:
    """What is sent, and what the trainer answered to the same probes."""

    version: int
    carrier: Carrier
    sent: Pending[Exported]
    expected: Pending[list[np.ndarray]]
    probes: list[Tokens]
    verifier: Verifier
    within: Within

    def deliver(self, engine: Handle[RolloutWorker]) -> Generator[Pending[Any], None, Delivered]:
        """Yields what it waits for, and goes on once that is there. Raises `WeightSyncError` if the engine does not
        answer as the trainer does, and whatever its calls raise."""
        receiving = yield from self.carrier.hand_over(engine, self.version)
        # Asked at once, so that no slice of an engine that goes on generating comes between.
        answering = engine.call(self.within, RolloutWorker.probe, self.probes)
        yield receiving
        sent, trainer = self.truth  # first: a trainer that died is no fault of the engine's
        receipt, at = receiving.result(), time.monotonic()
        yield answering
        answers = answering.result()
        found = self.verifier.check(engine.name, self.version, sent.digest, receipt.digest, trainer, answers)
        return Delivered(found, at)

    @cached_property
    def truth(self) -> tuple[Exported, list[np.ndarray]]:
        """What an engine's receipt and answers must say. Kept, as an engine that is restarted long after is asked the
        same."""
        return self.sent.result(), self.expected.result()
