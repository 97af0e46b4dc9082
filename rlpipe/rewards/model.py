"""A reward model that runs as a role: a frozen sequence classifier in one or several replicas.

A replica is a rank, or all ranks over which the model is split. The replicas share the groups that wait: each gets as
many in one call as one forward pass takes. Groups that get no answer within their deadline, and a score that is no
number, are failures. A replica that died, or whose process gives no sign of life, is no group's fault: the next one
that is free is asked the same, while another process takes its place; one that shares its process with another role, or
is split over several, cannot be replaced alone, and its death is raised.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from rlpipe.data.flow import Failure, Group, Tokens
from rlpipe.recipe.rewards import ModelReward
from rlpipe.recipe.run import Deadlines
from rlpipe.rewards.encoding import Encode
from rlpipe.rewards.replicas import Replica, Replicas
from rlpipe.rewards.reward import Allowance, Component
from rlpipe.runtime.handle import DeadlineExceeded, GivenUp, RoleDied, Silent, Within, results
from rlpipe.training.reward_model import RewardModel


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
        self._replicas = Replicas(recipe.name, scorer.replicas, scorer.replaced_within, recipe.max_restarts)

    def start(self) -> None: ...

    def ready(self) -> None:
        """The runtime that started the replicas has waited for them."""

    def takes(self, waiting: Sequence[Group]) -> int:
        """A replica's share, within the token budget of a forward pass."""
        share = waiting[: -(-len(waiting) // len(self._replicas))]
        tokens_so_far = accumulate(map(_tokens, share))
        return max(1, sum(tokens <= self._tokens_per_call for tokens in tokens_so_far))

    def score_all(self, groups: Sequence[Group], allowance: Allowance) -> list[list[Component]]:
        encoded = [self._scorer.encode(group) for group in groups]
        fitting = [tokens for sequences in encoded for tokens in sequences if self._fits(tokens)]
        answers = iter(self._ask(fitting, allowance))
        return [[next(answers) if self._fits(s) else self._too_long(s) for s in sequences] for sequences in encoded]

    def close(self) -> None: ...

    def _ask(self, sequences: list[Tokens], allowance: Allowance) -> list[Component]:
        losses = 0
        while True:
            post = self._replicas.take()  # waiting for one is not these groups' time
            try:
                answers = self._asked(post.replica, sequences, allowance)
            except RoleDied as fault:
                losses += 1
                self._replicas.lose(post, fault)
                if losses > self._max_restarts:
                    raise GivenUp(self._says_deadly(losses, fault)) from fault
                allowance = Allowance(allowance.seconds)
            except BaseException:
                self._replicas.give_back(post)
                raise
            else:
                self._replicas.give_back(post)
                return answers

    def _says_deadly(self, losses: int, fault: RoleDied) -> str:
        return (
            f"{losses} replicas of the reward `{self.name}` were lost while they were asked about the same responses; "
            f"its max_restarts is {self._max_restarts}. The last fault: {fault}"
        )

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

    def _fits(self, tokens: Tokens) -> bool:
        return len(tokens) <= self._scorer.max_length

    def _too_long(self, tokens: Tokens) -> Failure:
        return Failure("too_long", f"{len(tokens)} tokens; the reward model takes {self._scorer.max_length} at most")


def _tokens(group: Group) -> int:
    """As sampled; about as many as another tokenizer makes of it."""
    return sum(len(t.prompt_tokens) + len(t.response_tokens) for t in group.trajectories)
