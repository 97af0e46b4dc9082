"""Group Relative Policy Optimization."""

import torch

from rlpipe.algorithms.aggregate import masked_sum, token_mean
from rlpipe.algorithms.group_advantages import group_advantages
from rlpipe.algorithms.kl import KL_ESTIMATORS
from rlpipe.algorithms.mismatch import mismatch_sums
from rlpipe.algorithms.ppo_clip import ppo_clip


class Grpo:
    """GRPO (Shao et al. 2024, arXiv 2402.03300), its tokens averaged over the whole optimizer step (DAPO,
    arXiv 2503.14476):

        L = 1/N * sum_tokens [ -min(ratio * A, clip(ratio) * A) + kl_coefficient * KL(policy || reference) ]

    The arguments are the recipe's, with the recipe's meaning (rlpipe/recipe/algorithm.py).
    """

    def __init__(
        self, clip_low: float, clip_high: float, scale_by_std: bool, kl_coefficient: float, kl_estimator: str
    ) -> None:
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.scale_by_std = scale_by_std
        self.kl_coefficient = kl_coefficient
        self.kl = KL_ESTIMATORS[kl_estimator]

    @property
    def needs_reference(self) -> bool:
        """Whether `loss` wants the log-probabilities of a frozen reference."""
        return self.kl_coefficient > 0

    def advantages(self, rewards_B: torch.Tensor, groups_B: torch.Tensor, valid_B: torch.Tensor) -> torch.Tensor:
        """Advantage of each sequence over its group; 0 where the reward failed or the group has no signal."""
        return group_advantages(rewards_B, groups_B, valid_B, self.scale_by_std)

    def loss(
        self,
        *,
        logprobs_BT: torch.Tensor,
        behaviour_logprobs_BT: torch.Tensor,
        advantages_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        normalizer: float,
        old_logprobs_BT: torch.Tensor | None = None,
        reference_logprobs_BT: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """This micro-batch's share of the step's loss, and metrics as sums over response tokens.

        old_logprobs_BT are the trainer's own, from before the first update on this batch; without them this is that
        first update and the ratio is exp(logprobs - logprobs.detach()): 1, with the policy's gradient. The engine's
        behaviour_logprobs_BT are only compared with, never used as the old ones.

        Shapes: inputs [B, T], loss and metrics scalars; log-probabilities in nats.
        """
        policy_logprobs_BT = logprobs_BT.detach()
        if old_logprobs_BT is None:
            old_logprobs_BT = policy_logprobs_BT
        loss_BT, clipped_BT = ppo_clip(logprobs_BT, old_logprobs_BT, advantages_BT, self.clip_low, self.clip_high)
        metrics = {
            "clip_fraction": masked_sum(clipped_BT, mask_BT),
            "ratio": masked_sum(torch.exp(policy_logprobs_BT - old_logprobs_BT), mask_BT),
            "policy_kl": masked_sum(KL_ESTIMATORS["k3"](old_logprobs_BT, policy_logprobs_BT), mask_BT),
            **mismatch_sums(old_logprobs_BT, behaviour_logprobs_BT, mask_BT),
        }
        if self.needs_reference:
            kl_BT = self._reference_kl(logprobs_BT, reference_logprobs_BT)
            loss_BT = loss_BT + self.kl_coefficient * kl_BT
            metrics["reference_kl"] = masked_sum(kl_BT.detach(), mask_BT)
        metrics["loss"] = masked_sum(loss_BT.detach(), mask_BT)
        return token_mean(loss_BT, mask_BT, normalizer), metrics

    def _reference_kl(self, logprobs_BT: torch.Tensor, reference_logprobs_BT: torch.Tensor | None) -> torch.Tensor:
        if reference_logprobs_BT is None:
            raise ValueError(
                f"kl_coefficient={self.kl_coefficient} needs reference_logprobs: ask the Reference role before updating"
            )
        return self.kl(logprobs_BT, reference_logprobs_BT)
