"""A reward model that runs as a role: a frozen sequence classifier in one or several replicas.

A replica is a rank, or all ranks over which the model is split. The replicas share the groups that wait: each gets as
many in one call as one forward pass takes. Groups that get no answer within their deadline, and a score that is no
number, are failures. A replica that died, or whose process gives no sign of life, is no group's fault: another takes
its place and is asked the same, or, if its node is gone and no other has room, one of the others is asked; one that
shares its process with another role, or is split over several, cannot be replaced alone, and its death is raised.
"""

import contextlib
import logging
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from rlpipe.data.flow import Failure, Group, Tokens
from rlpipe.recipe.rewards import ModelReward
from rlpipe.recipe.run import Deadlines
from rlpipe.rewards.encoding import Encode
from rlpipe.rewards.reward import Allowance, Component
from rlpipe.runtime.handle import DeadlineExceeded, Handle, RoleDied, Silent, Within, first_ready, results
from rlpipe.runtime.roles import PlacementError
from rlpipe.training.reward_model import RewardModel

logger = logging.getLogger(__name__)

_SECONDS_PER_LOOK = 1.0
"""Between two looks whether a process whose node is gone has a place on another."""

Replica = list[Handle[RewardModel]]
"""The ranks of it."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """What a `model` reward asks: the replicas, how a group becomes their tokens, and how many they take."""

    replicas: list[Replica]
    encode: Encode
    max_length: int
    replaced_within: Deadlines | None = None
    """How long a sign of life of a process and another place for it are waited for; None where replicas cannot be
    replaced."""


class Model:
    """Asks a free replica for the scores of whole groups."""

    def __init__(self, recipe: ModelReward, scorer: Scorer):
        self.name = recipe.name
        self.weight = recipe.weight
        self._scorer = scorer
        self._tokens_per_call, self._max_restarts = recipe.tokens_per_batch, recipe.max_restarts
        self._free: queue.SimpleQueue[Replica] = queue.SimpleQueue()
        self._without_place: queue.SimpleQueue[Replica] = queue.SimpleQueue()
        for replica in scorer.replicas:
            self._free.put(replica)

    def start(self) -> None: ...

    def ready(self) -> None:
        """The runtime that started the replicas has waited for them."""

    def takes(self, waiting: Sequence[Group]) -> int:
        """A replica's share, within the token budget of a forward pass."""
        share = waiting[: -(-len(waiting) // len(self._scorer.replicas))]
        tokens_so_far = accumulate(map(_tokens, share))
        return max(1, sum(tokens <= self._tokens_per_call for tokens in tokens_so_far))

    def score_all(self, groups: Sequence[Group], allowance: Allowance) -> list[list[Component]]:
        encoded = [self._scorer.encode(group) for group in groups]
        fitting = [tokens for sequences in encoded for tokens in sequences if self._fits(tokens)]
        answers = iter(self._ask(fitting, allowance))
        return [[next(answers) if self._fits(s) else self._too_long(s) for s in sequences] for sequences in encoded]

    def close(self) -> None: ...

    def _ask(self, sequences: list[Tokens], allowance: Allowance) -> list[Component]:
        for attempt in range(self._max_restarts + 1):
            replica, goes_to = self._take(), self._free  # waiting for a busy one is not these groups' time
            try:
                return self._asked(replica, sequences, allowance)
            except RoleDied as fault:
                if self._scorer.replaced_within is None or attempt == self._max_restarts:
                    raise
                goes_to = self._replaced(replica, fault)
                allowance = Allowance(allowance.seconds)
            finally:
                goes_to.put(replica)

    def _take(self) -> Replica:
        """A replica that is free. Raises `PlacementError` if none has a place on the cluster for too long."""
        placed = time.monotonic()
        while True:
            self._look_for_places()
            with contextlib.suppress(queue.Empty):
                return self._free.get(timeout=_SECONDS_PER_LOOK)
            if self._without_place.qsize() < len(self._scorer.replicas):
                placed = time.monotonic()
            elif time.monotonic() - placed > self._scorer.replaced_within.placement:
                raise PlacementError(self._says_no_place())

    def _says_no_place(self) -> str:
        lacking = "; ".join(f"{rank.name} waits for {rank.lacking()}" for [rank] in self._scorer.replicas)
        return (
            f"No replica of the reward `{self.name}` has had a place on the cluster within "
            f"{self._scorer.replaced_within.placement:g} s (deadlines.placement), since nodes are lost: {lacking} Add "
            "nodes and resume the run, or lower the resources of the reward."
        )

    def _look_for_places(self) -> None:
        for _ in range(self._without_place.qsize()):
            with contextlib.suppress(queue.Empty):  # another thread was quicker
                replica = self._without_place.get_nowait()
                self._start_again(replica).put(replica)

    def _asked(self, replica: Replica, sequences: list[Tokens], allowance: Allowance) -> list[Component]:
        begin = time.monotonic()
        try:
            within = Within("reward", allowance.left)
            shares = results([rank.call(within, RewardModel.score, sequences) for rank in replica])
            return np.sum(shares, axis=0).tolist()
        except Silent as silence:
            raise RoleDied(str(silence), silence.who) from None
        except DeadlineExceeded as error:
            self._require_life(replica)
            return [Failure("deadline", str(error).partition("\n")[0])] * len(sequences)
        finally:
            allowance.spend(time.monotonic() - begin)

    def _require_life(self, replica: Replica) -> None:
        """Raises `RoleDied` for a process that hangs, where another could take its place."""
        if self._scorer.replaced_within is None:
            return
        within = Within("heartbeat", self._scorer.replaced_within.heartbeat)
        try:
            results([rank.pulse(within) for rank in replica])
        except DeadlineExceeded as silence:
            raise RoleDied(str(silence), silence.who) from None

    def _replaced(self, replica: Replica, fault: RoleDied) -> "queue.SimpleQueue[Replica]":
        """Where it goes, with another process in its place or without."""
        logger.warning("%s is lost: %s\nA new process takes its place.", replica[0].name, fault)
        goes_to = self._start_again(replica)
        if lacking := replica[0].lacking():
            logger.warning("%s waits for %s It is started when a node joins.", replica[0].name, lacking)
        return goes_to

    def _start_again(self, replica: Replica) -> "queue.SimpleQueue[Replica]":
        [rank] = replica
        return self._without_place if rank.lacking() or not self._started(rank) else self._free

    def _started(self, rank: Handle[RewardModel]) -> bool:
        """False if its node turns out to be gone meanwhile."""
        starting = rank.restart()
        while not first_ready([starting], _SECONDS_PER_LOOK) and starting.seconds_left() > 0:
            if rank.lacking():
                return False
        try:
            starting.result()
            logger.warning("%s is there again", rank.name)
        except (RoleDied, DeadlineExceeded) as again:  # the next question shows it
            if rank.moved():
                return False
            logger.warning("%s is lost again: %s", rank.name, again)
        return True

    def _fits(self, tokens: Tokens) -> bool:
        return len(tokens) <= self._scorer.max_length

    def _too_long(self, tokens: Tokens) -> Failure:
        return Failure("too_long", f"{len(tokens)} tokens; the reward model takes {self._scorer.max_length} at most")


def _tokens(group: Group) -> int:
    """As sampled; about as many as another tokenizer makes of it."""
    return sum(len(t.prompt_tokens) + len(t.response_tokens) for t in group.trajectories)
