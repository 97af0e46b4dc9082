"""The training side of the loop: what the loss needs to know, then the updates, over however many ranks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlpipe.algorithms.kl_controller import KlController
from rlpipe.algorithms.online import OnlineAlgorithm
from rlpipe.data.flow import Group, Shard, TokenBatch
from rlpipe.pipelines.online.batch import scored, token_batch, with_signal, with_weights
from rlpipe.pipelines.online.metrics import signal_metrics
from rlpipe.recipe.roles import PolicyTraining
from rlpipe.runtime.handle import Handle, Look, Pending, Within, first_ready, results
from rlpipe.training.critic import Critic
from rlpipe.training.metrics import Mean, merge
from rlpipe.training.microbatch import collect, make_shards, plan_micro_batches, plan_step, split_minibatches
from rlpipe.training.policy import Policy
from rlpipe.training.reference import Reference


class Trainer:
    """Trains the policy, and the critic if there is one, on one batch at a time."""

    def __init__(
        self,
        roles: dict[str, list[Handle[Any]]],
        algorithm: OnlineAlgorithm,
        training: PolicyTraining,
        group_size: int,
        seconds: float,
        critic_warmup: int = 0,
        taking_turns: bool = False,
        look: Look = first_ready,
    ) -> None:
        """`taking_turns` says that policy and critic share their GPUs: one after the other trains, and then makes
        room. `look` waits for the roles."""
        self._roles, self._algorithm, self._training = roles, algorithm, training
        self._group_size, self._within = group_size, Within("train", seconds)
        self._critic_warmup = critic_warmup if algorithm.needs_critic else 0
        self._taking_turns, self._look = taking_turns, look
        self._kl = algorithm.kl_controller()

    @property
    def kl(self) -> KlController:
        """What a checkpoint must hold beside the roles' own."""
        return self._kl

    def batch(self, groups: Sequence[Group]) -> tuple[TokenBatch, dict[str, float]]:
        """The groups as flat arrays, with everything the updates need beside them; and what that is in numbers."""
        shaped = self._algorithm.shaped(scored(groups))
        batch = self._asked(token_batch(groups, shaped.valid_B))
        batch, said = with_signal(batch, groups, shaped, self._algorithm, self._kl.coefficient)
        batch = with_weights(batch, self._minibatches(batch), self._algorithm)
        return batch, signal_metrics(batch, shaped) | said

    def update(self, batch: TokenBatch, step: int) -> dict[str, float]:
        """All optimizer steps on this batch; means over their tokens. In the first steps a critic may learn alone."""
        learners = ["policy"] if step > self._critic_warmup else []
        learners += ["critic"] if self._algorithm.needs_critic else []
        parts: dict[str, list[dict[str, Mean]]] = {name: [] for name in learners}
        for together in self._turns(learners):
            for _ in range(self._training.epochs):
                for sequences in self._minibatches(batch):
                    for name, stats in self._step(batch, sequences, together).items():
                        parts[name] += stats
            self._make_room(together)
        metrics = merge(parts.get("policy", [])) | merge(parts.get("critic", []))
        return metrics | self._controlled(batch, metrics)

    def _turns(self, learners: list[str]) -> list[list[str]]:
        """Who learns at the same time as whom."""
        return [[learner] for learner in learners] if self._taking_turns else [learners]

    def _make_room(self, learners: list[str]) -> None:
        if self._taking_turns:
            rests = {"policy": Policy.rest, "critic": Critic.rest}
            calls = [rank.call(self._within, rests[name]) for name in learners for rank in self._roles[name]]
            results(calls, self._look)

    def _step(self, batch: TokenBatch, sequences: np.ndarray, learners: list[str]) -> dict[str, list[dict[str, Mean]]]:
        """One optimizer step of each learner; all are under way before one is waited for."""
        updates = {"policy": Policy.update, "critic": Critic.update}
        pending = {name: self._call(name, updates[name], self._shards(name, batch, sequences)) for name in learners}
        return {name: results(calls, self._look) for name, calls in pending.items()}

    def _shards(self, role: str, batch: TokenBatch, sequences: np.ndarray) -> list[Shard]:
        ranks, budget = len(self._roles[role]), self._training.tokens_per_micro_batch
        return plan_step(batch, sequences, ranks, budget, self._kl.coefficient)

    def _controlled(self, batch: TokenBatch, metrics: dict[str, float]) -> dict[str, float]:
        """The coefficient of this step; the KL that was measured per response sets the next one."""
        if not self._algorithm.needs_reference:
            return {}
        used = self._kl.coefficient
        responses = len(np.unique(np.repeat(np.arange(len(batch.lengths_B)), batch.lengths_B)[batch.mask_N > 0]))
        if "reference_kl" in metrics and responses:
            self._kl.update(metrics["reference_kl"] * float(np.count_nonzero(batch.mask_N)) / responses, responses)
        return {"kl_coefficient": used}

    def _minibatches(self, batch: TokenBatch) -> list[np.ndarray]:
        groups_B = np.arange(len(batch.lengths_B)) // self._group_size
        return split_minibatches(groups_B, self._training.minibatches)

    def _asked(self, batch: TokenBatch) -> TokenBatch:
        """The batch with what the roles say about it before the first update; all are asked at the same time."""
        updates = self._training.minibatches * self._training.epochs
        asked = {}
        if self._algorithm.needs_reference:
            asked["reference_logprobs_N"] = self._ask(*self._reference, batch)
        if self._algorithm.needs_old_logprobs(updates):
            asked["old_logprobs_N"] = self._ask("policy", Policy.logprobs, batch)
        if self._algorithm.needs_critic:
            asked["values_N"] = self._ask("critic", Critic.values, batch)
        return replace(batch, **{column: answer() for column, answer in asked.items()})

    @property
    def _reference(self) -> tuple[str, Callable[..., np.ndarray]]:
        """Who answers as the reference: a role of its own, or the policy with its adapter off."""
        if "reference" in self._roles:
            return "reference", Reference.logprobs
        return "policy", Policy.reference_logprobs

    def _ask(self, role: str, method: Callable[..., np.ndarray], batch: TokenBatch) -> Callable[[], np.ndarray]:
        """One number per token from a role's ranks, under way; the result waits for it."""
        ranks, everything = len(self._roles[role]), range(len(batch.lengths_B))
        plan = plan_micro_batches(batch.lengths_B, everything, ranks, self._training.tokens_per_micro_batch)
        calls = self._call(role, method, make_shards(batch, plan))
        return lambda: collect(batch, plan, results(calls, self._look))

    def _call(self, role: str, method: Callable[..., Any], shards: Sequence[Shard]) -> list[Pending[Any]]:
        return [r.call(self._within, method, shard) for r, shard in zip(self._roles[role], shards, strict=True)]
