"""An online algorithm, put together from parts that its settings name."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from rlpipe.algorithms.advantage_kinds import ADVANTAGES, Rewarded, Signal
from rlpipe.algorithms.aggregate import keep, masked_sum, token_weights
from rlpipe.algorithms.correction_kinds import CORRECTIONS
from rlpipe.algorithms.kl import KL_ESTIMATORS
from rlpipe.algorithms.kl_controller import AdaptiveKl, FixedKl, KlController
from rlpipe.algorithms.kl_in_reward import kl_penalty
from rlpipe.algorithms.loss_kinds import LOSSES, Tokens
from rlpipe.algorithms.mismatch import mismatch_sums
from rlpipe.algorithms.ratio import probability_ratio
from rlpipe.algorithms.shaping_kinds import SHAPINGS, Scored

Sums = dict[str, torch.Tensor]
"""Metrics as sums over response tokens, so that they add up over micro-batches and ranks."""


class OnlineAlgorithm:
    """The loss of one optimizer step, over its tokens n:

        L = sum_n weight_n * [ factor_n * policy_loss_n + kl_coefficient * KL_n - entropy_coefficient * H_n ]

    `loss` chooses policy_loss, `correction` the factor, `aggregation` the weights, `advantage` and `shaping` what the
    policy loss learns from; the KL stands here or in the reward (`kl.placement`).

    `settings` are the recipe's (rlpipe/recipe/algorithm), as plain values and with the recipe's meaning.
    """

    def __init__(self, settings: Mapping[str, Any], max_new_tokens: int) -> None:
        self._advantage = _part(ADVANTAGES, settings["advantage"])
        self._policy_loss = _part(LOSSES, settings["loss"])
        correction = settings["correction"]
        self._correct = None if correction["kind"] == "none" else _part(CORRECTIONS, correction)
        self._shape = [partial(_part(SHAPINGS, s), max_new_tokens=max_new_tokens) for s in settings["shaping"]]
        self._kl, self._estimator = settings["kl"], settings["kl"]["estimator"]
        self._aggregation, self._longest = settings["aggregation"], float(max_new_tokens)
        self.entropy_coefficient: float = settings["entropy_coefficient"]
        self.needs_critic: bool = settings["advantage"]["kind"] == "gae"
        """Whether `signal` wants a critic's values."""
        self._compares: bool = settings["advantage"]["kind"] == "dpo"
        """Whether `signal` wants log-probabilities of policy and reference."""

    @property
    def needs_reference(self) -> bool:
        """Whether there is a frozen reference to be asked for log-probabilities."""
        return self._kl["coefficient"] > 0 or self._compares

    @property
    def kl_in_reward(self) -> bool:
        return self._kl["coefficient"] > 0 and self._kl["placement"] == "reward"

    @property
    def kl_in_loss(self) -> bool:
        return self._kl["coefficient"] > 0 and self._kl["placement"] == "loss"

    def needs_old_logprobs(self, updates_per_batch: int) -> bool:
        """Whether the policy is to be asked for log-probabilities before its first update on a batch.

        A KL in the reward is made of them, and so is DPO's margin; a ratio or a correction needs them if there are
        several updates. If there is one, those of its own forward pass are the same.
        """
        return updates_per_batch > 1 or self.kl_in_reward or self._compares

    def kl_controller(self) -> KlController:
        """What the coefficient of the KL penalty does over the run; the driver's."""
        controller = self._kl["controller"]
        if controller["kind"] == "adaptive":
            return AdaptiveKl(self._kl["coefficient"], controller["target"], controller["horizon"])
        return FixedKl(self._kl["coefficient"])

    def shaped(self, scored: Scored) -> Scored:
        """The step's rewards after all shapings, in their order."""
        for shape in self._shape:
            scored = shape(scored)
        return scored

    def signal(
        self,
        *,
        rewards_B: torch.Tensor,
        groups_B: torch.Tensor,
        valid_B: torch.Tensor,
        mask_BT: torch.Tensor,
        kl_coefficient: float,
        old_logprobs_BT: torch.Tensor | None = None,
        reference_logprobs_BT: torch.Tensor | None = None,
        values_BT: torch.Tensor | None = None,
    ) -> Signal:
        """Advantages, and the critic's targets, of a whole step at once.

        Shapes: rewards_B, valid_B and groups_B (any integers) [B], the others and both results [B, T].
        """
        penalty_BT = torch.zeros_like(mask_BT)
        if self.kl_in_reward:
            old_BT, reference_BT = _given(old_logprobs_BT, "Policy"), _given(reference_logprobs_BT, "Reference")
            penalty_BT = kl_penalty(old_BT, reference_BT, mask_BT, _above_zero(kl_coefficient), self._estimator)
        it = Rewarded(
            rewards_B, groups_B, valid_B, mask_BT, penalty_BT, values_BT, old_logprobs_BT, reference_logprobs_BT
        )
        return self._advantage(it)

    def weights(self, mask_N: torch.Tensor, sequence_of_N: torch.Tensor) -> torch.Tensor:
        """What each token's loss counts in one optimizer step, whose tokens these are: [N], see `token_weights`."""
        return token_weights(self._aggregation, mask_N, sequence_of_N, self._longest)

    def loss(
        self,
        *,
        logprobs_BT: torch.Tensor,
        behaviour_logprobs_BT: torch.Tensor,
        advantages_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        weights_BT: torch.Tensor,
        kl_coefficient: float,
        old_logprobs_BT: torch.Tensor | None = None,
        reference_logprobs_BT: torch.Tensor | None = None,
        entropy_BT: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Sums]:
        """This micro-batch's share of the step's loss, and its metrics.

        old_logprobs_BT are the trainer's own, from before the first update on this batch; without them this is that
        first update and the ratio is exp(logprobs - logprobs.detach()): 1, with the policy's gradient. The engine's
        behaviour_logprobs_BT are corrected for, and compared with, but never used as the old ones. entropy_BT, with
        gradient, is needed if `entropy_coefficient` is not 0; sequences are whole in their rows.

        Shapes: inputs [B, T], loss and metrics scalars; log-probabilities and entropy in nats.
        """
        old_BT = logprobs_BT.detach() if old_logprobs_BT is None else old_logprobs_BT
        it = Tokens.kept(logprobs_BT, old_BT, advantages_BT, mask_BT)
        loss_BT, clipped_BT = self._policy_loss(it)
        sums = _update_sums(it, clipped_BT) | mismatch_sums(old_BT, behaviour_logprobs_BT, mask_BT)
        if self._correct:
            factors_BT, cut = self._correct(old_BT, behaviour_logprobs_BT, mask_BT)
            loss_BT = factors_BT * loss_BT
            sums |= {"correction/cut": cut, "correction/factor": masked_sum(factors_BT, mask_BT)}
        if self.needs_reference:
            reference_BT = keep(_given(reference_logprobs_BT, "Reference"), mask_BT)
            kl_BT = KL_ESTIMATORS[self._estimator](it.logprobs_BT, reference_BT)
            sums["reference_kl"] = masked_sum(kl_BT.detach(), mask_BT)
            if self.kl_in_loss:
                loss_BT = loss_BT + _above_zero(kl_coefficient) * kl_BT
        if self.entropy_coefficient:
            loss_BT = loss_BT - self.entropy_coefficient * keep(entropy_BT, mask_BT)
        return masked_sum(loss_BT, weights_BT), sums


def _part(kinds: Mapping[str, Callable[..., Any]], settings: Mapping[str, Any]) -> Callable[..., Any]:
    """The function of a part's kind, with the kind's own settings."""
    kind = settings["kind"]
    if kind not in kinds:
        raise ValueError(f"there is no kind {kind!r}; there are: {', '.join(kinds)}")
    return partial(kinds[kind], **{key: value for key, value in settings.items() if key != "kind"})


def _given(logprobs_BT: torch.Tensor | None, role: str) -> torch.Tensor:
    if logprobs_BT is None:
        raise ValueError(f"the KL penalty needs log-probabilities of the {role} role: ask it before updating")
    return logprobs_BT


def _above_zero(coefficient: float) -> float:
    if coefficient <= 0:
        raise ValueError(f"the KL penalty is on, but its coefficient came as {coefficient}: give it with the shards")
    return coefficient


def _update_sums(it: Tokens, clipped_BT: torch.Tensor) -> Sums:
    """How far the policy is from where it was before the batch."""
    policy_BT = it.logprobs_BT.detach()
    return {
        "clip_fraction": masked_sum(clipped_BT, it.mask_BT),
        "ratio": masked_sum(probability_ratio(policy_BT - it.old_logprobs_BT), it.mask_BT),
        "policy_kl": masked_sum(KL_ESTIMATORS["k3"](it.old_logprobs_BT, policy_BT), it.mask_BT),
    }
