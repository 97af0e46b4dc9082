"""An adapter out of a folder on its way to engines that hold its base, without a trainer that could say what they are
to answer."""

import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace

import numpy as np

from rlpipe.data.flow import Tokens
from rlpipe.rollout.delivery import Delivered
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.handle import Handle, Pending, Within
from rlpipe.weights.packing import digest_of, unpack
from rlpipe.weights.payload import Payload
from rlpipe.weights.verify import Logprobs, WeightSyncError


@dataclass(frozen=True, slots=True)
class Came:
    """What came to an engine, and what it answered to the probes with it."""

    name: str
    digest: str
    answers: Logprobs
    has_effect: bool


@dataclass(slots=True)
class Bare:
    """What each engine answers to the probes while its adapter does nothing, and with the one that came last; by the
    engine's name."""

    probes: list[Tokens]
    nothing: Payload
    """An adapter without effect."""
    answers: dict[str, Logprobs] = field(default_factory=dict)
    last: dict[str, Came] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FixedAdapter:
    """One adapter, in the place of a `Publication`. Proof is that its bytes have arrived, and that the engine, through
    the forward pass that serves requests, answers otherwise than with an adapter that does nothing, which comes first
    to every engine, and otherwise than with the one before."""

    name: str
    version: int
    payload: Payload
    bare: Bare
    within: Within

    def deliver(self, engine: Handle[RolloutWorker]) -> Generator[Pending, None, Delivered]:
        """As `Publication.deliver`."""
        if has_effect(self.payload) and engine.name not in self.bare.answers:  # one that joins late, too
            yield from replace(self, name="no model", payload=self.bare.nothing).deliver(engine)
        receiving = engine.call(self.within, RolloutWorker.publish, self.version, self.payload)
        answering = engine.call(self.within, RolloutWorker.probe, self.bare.probes)
        yield receiving
        receipt, at = receiving.result(), time.monotonic()
        yield answering
        came = Came(self.name, receipt.digest or "", answering.result(), has_effect(self.payload))
        self._check(engine.name, came)
        self.bare.last[engine.name] = came
        return Delivered(None, at)

    def _check(self, engine: str, came: Came) -> None:
        if came.digest != self.payload.digest:
            raise WeightSyncError(
                f"{engine}: the adapter of {self.name} has digest {self.payload.digest}, and {came.digest or 'none'} "
                "arrived: it was damaged on the way."
            )
        self._check_change(engine, came)
        if not came.has_effect:
            self.bare.answers[engine] = came.answers
        elif _same(self.bare.answers[engine], came.answers):
            raise WeightSyncError(
                f"{engine}: with the adapter of {self.name} it answers {len(came.answers)} probes exactly as without "
                "any: the adapter did not arrive, or changes too little to be seen in this dtype. Give the merged "
                "model, or look at the adapter's training."
            )

    def _check_change(self, engine: str, came: Came) -> None:
        """The one before may be there still. Two without effect are alike, and so is one that comes twice."""
        last = self.bare.last.get(engine)
        if last is None or last.digest == came.digest or not last.has_effect:
            return
        if _same(last.answers, came.answers):
            raise WeightSyncError(
                f"{engine}: with the adapter of {self.name} it answers {len(came.answers)} probes exactly as with that "
                f"of {last.name}, which came before: the adapter did not arrive, or both are the same in this dtype. "
                "Give the merged model, or leave one of the two out."
            )


def without_effect(payload: Payload) -> Payload:
    """An adapter of the same shapes whose B is 0: W + s B A is W to the last bit."""
    buckets = tuple(bucket.copy() for bucket in payload.buckets)
    for entry in payload.index:
        if _is_b(entry.name):
            buckets[entry.bucket][entry.offset : entry.offset + entry.nbytes] = 0
    return replace(payload, buckets=buckets, digest=digest_of(buckets))


def has_effect(payload: Payload) -> bool:
    """Whether any B is not 0."""
    return any(bool(tensor.any()) for name, tensor in unpack(payload) if _is_b(name))


def _is_b(name: str) -> bool:
    return ".lora_B." in name or ".lora_embedding_B" in name


def _same(first: Logprobs, second: Logprobs) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
