"""A reward model that runs as a role: a frozen sequence classifier in one or several replicas.

A replica is a rank, or all ranks over which the model is split. The replicas share the groups that wait: each gets as
many in one call as one forward pass takes. Groups that get no answer within their deadline, and a score that is no
number, are failures; a replica that is lost is not (`fleet`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from rlpipe.data.flow import Failure, Group, Tokens
from rlpipe.recipe.rewards import ModelReward
from rlpipe.recipe.run import Deadlines
from rlpipe.rewards.encoding import Encode
from rlpipe.rewards.fleet import Fleet
from rlpipe.rewards.replicas import Replica
from rlpipe.rewards.reward import Allowance, Component
from rlpipe.runtime.handle import Within, results
from rlpipe.training.reward_model import RewardModel


@dataclass(frozen=True, slots=True)
class Scorer:
    """What a `model` reward asks: the replicas, how a group becomes their tokens, and how many they take."""

    replicas: list[Replica]
    encode: Encode
    max_length: int
    replaced_within: Deadlines | None = None
    """How long another place for a process is waited for; None where replicas cannot be replaced."""
    heartbeat: float = Deadlines().heartbeat
    """Seconds for a sign of life of a process."""


class Model:
    """Asks a free replica for the scores of whole groups."""

    def __init__(self, recipe: ModelReward, scorer: Scorer):
        self.name = recipe.name
        self.weight = recipe.weight
        self._scorer = scorer
        self._tokens_per_call = recipe.tokens_per_batch
        self._fleet = Fleet(recipe.name, scorer.replicas, scorer.replaced_within, recipe.max_restarts, scorer.heartbeat)

    def start(self) -> None: ...

    def ready(self) -> None:
        """The runtime that started the replicas has waited for them."""

    def takes(self, waiting: Sequence[Group]) -> int:
        """A replica's share, within the token budget of a forward pass."""
        share = waiting[: -(-len(waiting) // len(self._fleet))]
        tokens_so_far = accumulate(map(_tokens, share))
        return max(1, sum(tokens <= self._tokens_per_call for tokens in tokens_so_far))

    def score_all(self, groups: Sequence[Group], allowance: Allowance) -> list[list[Component]]:
        encoded = [self._scorer.encode(group) for group in groups]
        fitting = [tokens for sequences in encoded for tokens in sequences if self._fits(tokens)]
        answers = iter(self._ask(fitting, allowance))
        return [[next(answers) if self._fits(s) else self._too_long(s) for s in sequences] for sequences in encoded]

    def close(self) -> None: ...

    def _ask(self, sequences: list[Tokens], allowance: Allowance) -> list[Component]:
        def score(replica: Replica, within: Within) -> list[Component]:
            shares = results([rank.call(within, RewardModel.score, sequences) for rank in replica])
            return np.sum(shares, axis=0).tolist()

        answer = self._fleet.ask(score, allowance)
        return [answer] * len(sequences) if isinstance(answer, Failure) else answer

    def _fits(self, tokens: Tokens) -> bool:
        return len(tokens) <= self._scorer.max_length

    def _too_long(self, tokens: Tokens) -> Failure:
        return Failure("too_long", f"{len(tokens)} tokens; the reward model takes {self._scorer.max_length} at most")


def _tokens(group: Group) -> int:
    """As sampled; about as many as another tokenizer makes of it."""
    return sum(len(t.prompt_tokens) + len(t.response_tokens) for t in group.trajectories)
