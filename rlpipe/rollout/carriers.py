"""How one version of the weights gets from the policy's processes into an engine.

    object store   packed on the CPU; an engine reads the buckets from shared memory, another node from a copy
    nccl           broadcast from rank 0 to the engine's GPUs
    ipc            laid out in a buffer on each GPU, which the part of the engine on the same GPU opens

Each has `hand_over(engine, version)`: it yields what it waits for, and returns the call whose result is the engine's
receipt. That call is the last one made.
"""

import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from rlpipe.rollout.engine import Receipt
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.handle import DeadlineExceeded, Handle, Pending, Within, first_ready
from rlpipe.training.policy import Policy
from rlpipe.weights.direct import Arrived, Described, Part
from rlpipe.weights.payload import Payload

Handing = Generator[Pending[Any], None, Pending[Receipt]]


class Carrier(Protocol):
    """See above."""

    lasts: ClassVar[bool]
    """Whether an engine that comes later still gets these weights, whatever the policy has learned since."""

    def hand_over(self, engine: Handle[RolloutWorker], version: int) -> Handing: ...


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """The payload goes to engines straight from the rank that packed it."""

    lasts: ClassVar[bool] = True
    payload: Pending[Payload]
    within: Within

    def hand_over(self, engine: Handle[RolloutWorker], version: int) -> Handing:
        return engine.call(self.within, RolloutWorker.publish, version, self.payload)
        yield  # nothing is waited for


@dataclass(frozen=True, slots=True)
class Nccl:
    """Engines get the weights one after the other, as rank 0 takes its calls in order. Each has a group of its own with
    rank 0, so that one that is replaced meets rank 0 anew while the others' groups stay."""

    lasts: ClassVar[bool] = False
    policy: Sequence[Handle[Policy]]
    described: Pending[Described]
    workers: int
    """Of each engine."""
    within: Within

    def hand_over(self, engine: Handle[RolloutWorker], version: int) -> Handing:
        yield from self._meet(engine)
        # All at once: both sides wait for each other, and no slice of an engine that generates may come in between.
        part = Part(self.described.result().tensors)
        calls: list[Pending[Any]] = [rank.call(self.within, Policy.broadcast, engine.name) for rank in self.policy]
        taking = engine.call(self.within, RolloutWorker.take, part)
        receipt = engine.call(self.within, RolloutWorker.publish, version, Arrived())
        for call in (*calls, taking):
            yield call
            try:
                call.result()
            except DeadlineExceeded:  # of ranks that wait for an engine, which may have said why it does not take them
                if first_ready([taking], 0.0):
                    taking.result()
                raise
        return receipt

    def _meet(self, engine: Handle[RolloutWorker]) -> Generator[Pending[Any], None, None]:
        """Both sides know the token of a group that both are in: a process that is new knows none."""
        first = self.policy[0]
        ours = first.call(self.within, Policy.wire_token, engine.name)
        theirs = engine.call(self.within, RolloutWorker.wire_token)
        yield ours
        yield theirs
        if ours.result() is not None and ours.result() == theirs.result():
            return
        token = uuid.uuid4().hex
        wire = first.call(self.within, Policy.open_wire, token)
        yield wire
        joining = engine.call(self.within, RolloutWorker.join, wire.result())
        accepting = first.call(self.within, Policy.join, engine.name, wire.result(), self.workers)
        for call in (joining, accepting):
            yield call
            call.result()


@dataclass(frozen=True, slots=True)
class Ipc:
    """An engine and the ranks beside it take turns on their GPUs: part by part, and when the last one is taken in, the
    ranks that took part leave, before the engine claims the rest."""

    lasts: ClassVar[bool] = False
    policy: Sequence[Handle[Policy]]
    beside: Mapping[str, Sequence[int]]
    """By the name of each engine, the ranks on whose GPUs it is."""
    split: bool
    """Whether ZeRO-3 has the ranks gather each part together."""
    within: Within
    under_way: set[str] = field(default_factory=set)
    """Engines that parts are laid out for."""

    def hand_over(self, engine: Handle[RolloutWorker], version: int) -> Handing:
        self.under_way.add(engine.name)
        try:
            yield from self._parts(engine)
        finally:
            self.under_way.discard(engine.name)
        # Other ranks have helped, and were woken by that; but what they have laid out for other engines is read first.
        woken = range(len(self.policy)) if self.split and not self.under_way else self.beside[engine.name]
        for call in [self.policy[rank].call(self.within, Policy.give_way) for rank in woken]:
            yield call
            call.result()
        return engine.call(self.within, RolloutWorker.publish, version, Arrived())

    def _parts(self, engine: Handle[RolloutWorker]) -> Generator[Pending[Any], None, None]:
        index = 0
        while (part := (yield from self._part(engine.name, index))) is not None:
            taking = engine.call(self.within, RolloutWorker.take, part)
            yield taking
            taking.result()
            index += 1

    def _part(self, engine: str, index: int) -> Generator[Pending[Any], None, Part | None]:
        """Where all ranks of the engine have laid out this part."""
        mine = self.beside[engine]
        ranks = range(len(self.policy)) if self.split else mine
        calls = [self.policy[rank].call(self.within, Policy.part, index, rank in mine) for rank in ranks]
        yield from calls
        parts = [call.result() for call in calls]
        if parts[0] is None:
            return None
        handles = {uuid: how for part in parts for uuid, how in part.handles.items()}
        return Part(parts[0].tensors, handles)
