"""The training side of the loop: reference, old log-probabilities, updates, over however many ranks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlpipe.algorithms.registry import Algorithm
from rlpipe.data.flow import Group, TokenBatch
from rlpipe.pipelines.online.batch import token_batch
from rlpipe.recipe.training import PolicyTraining
from rlpipe.runtime.handle import Handle, Within, results
from rlpipe.training.metrics import merge
from rlpipe.training.microbatch import collect, make_shards, plan_micro_batches, plan_step, split_minibatches
from rlpipe.training.policy import Policy
from rlpipe.training.reference import Reference


class Trainer:
    """Trains the policy on one batch at a time."""

    def __init__(
        self,
        roles: dict[str, list[Handle[Any]]],
        algorithm: Algorithm,
        training: PolicyTraining,
        group_size: int,
        seconds: float,
    ) -> None:
        self._roles, self._algorithm, self._training = roles, algorithm, training
        self._group_size, self._within = group_size, Within("train", seconds)

    def batch(self, groups: Sequence[Group]) -> TokenBatch:
        """The groups as flat arrays, with what the algorithm's loss needs beside them."""
        batch = token_batch(groups, self._algorithm)
        if self._algorithm.needs_reference:
            batch = replace(batch, reference_logprobs_N=self._logprobs("reference", Reference.logprobs, batch))
        if self._training.minibatches * self._training.epochs > 1:
            batch = replace(batch, old_logprobs_N=self._logprobs("policy", Policy.logprobs, batch))
        return batch

    def update(self, batch: TokenBatch) -> dict[str, float]:
        """All optimizer steps on this batch; means over their tokens."""
        groups_B = np.arange(len(batch.lengths_B)) // self._group_size
        parts = split_minibatches(groups_B, self._training.minibatches)
        return merge(stats for _ in range(self._training.epochs) for part in parts for stats in self._step(batch, part))

    def _step(self, batch: TokenBatch, sequences: np.ndarray) -> list[dict[str, Any]]:
        policy = self._roles["policy"]
        shards = plan_step(batch, sequences, len(policy), self._training.tokens_per_micro_batch)
        return results([r.call(self._within, Policy.update, s) for r, s in zip(policy, shards, strict=True)])

    def _logprobs(self, role: str, method: Any, batch: TokenBatch) -> np.ndarray:
        ranks = self._roles[role]
        everything = range(len(batch.lengths_B))
        plan = plan_micro_batches(batch.lengths_B, everything, len(ranks), self._training.tokens_per_micro_batch)
        shards = make_shards(batch, plan)
        parts = results([r.call(self._within, method, s) for r, s in zip(ranks, shards, strict=True)])
        return collect(batch, plan, parts)
