"""Who has the GPUs: engines and training roles at the same time, or one after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlpipe.pipelines.online.publisher import Publisher
from rlpipe.rollout.pool import EnginePool
from rlpipe.runtime.handle import Handle, Within, results
from rlpipe.training.critic import Critic
from rlpipe.training.policy import Policy

_LEAVE = {"policy": Policy.give_way, "critic": Critic.give_way}


class Turns(Protocol):
    """Asked before each part of a step. Whose turn it is already is left alone."""

    def train(self) -> None:
        """Training roles compute next, or load, or write."""

    def sample(self) -> None:
        """Engines generate next."""


class Together:
    """Engines and training roles have GPUs of their own (placement: split)."""

    def train(self) -> None:
        """They can."""

    def sample(self) -> None:
        """They can."""


@dataclass(frozen=True, slots=True)
class InTurns:
    """They have the same (placement: colocated). Engines sleep while training runs; what wakes them is the next
    publish, so that none ever generates with weights or keys and values of before it slept. The training roles make
    room for that in the publisher, and come back by themselves with the first call that needs them."""

    model: str
    pool: EnginePool
    publisher: Publisher

    def train(self) -> None:
        if not self.pool.sleeps(self.model):
            self.pool.sleep(self.model)

    def sample(self) -> None:
        if self.pool.sleeps(self.model):
            self.publisher.publish(self.publisher.version)


@dataclass(frozen=True, slots=True)
class GivingWay:
    """Called when engines are about to need the GPUs: the training roles that share them keep everything in host
    memory."""

    roles: Mapping[str, Sequence[Handle[Any]]]
    within: Within

    def __call__(self) -> None:
        leaving = {name: ranks for name, ranks in self.roles.items() if name in _LEAVE}
        results([rank.call(self.within, _LEAVE[name]) for name, ranks in leaving.items() for rank in ranks])
