"""Rewards of single tokens: the sequence's own, less what it costs to leave the reference."""

import torch

from rlpipe.algorithms.aggregate import keep
from rlpipe.algorithms.kl import KL_ESTIMATORS


def at_last_token(rewards_B: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Each sequence's reward on its last policy token, 0 elsewhere; [B, T]. Without policy tokens it is never read."""
    kept_BT = mask_BT > 0
    left_BT = kept_BT.flip(-1).cumsum(-1).flip(-1)
    return keep(rewards_B[:, None].expand_as(mask_BT), kept_BT & (left_BT == 1))


@torch.no_grad()
def kl_penalty(
    logprobs_BT: torch.Tensor,
    reference_logprobs_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    coefficient: float,
    estimator: str,
) -> torch.Tensor:
    """coefficient * KL_t(policy || reference) of each policy token: [B, T] in reward units, 0 where masked.

    `estimator` names one of `KL_ESTIMATORS`; with the KL in the reward the papers take k1. logprobs_BT are those of the
    policy that acted, from before the first update; nats.
    """
    return coefficient * keep(KL_ESTIMATORS[estimator](logprobs_BT, reference_logprobs_BT), mask_BT)


def kl_in_reward(rewards_B: torch.Tensor, penalty_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The KL penalty as part of the reward (Ziegler et al. 2019, arXiv 1909.08593, eq. 2; Ouyang et al. 2022,
    arXiv 2203.02155, eq. 2), token by token.

        r_t = [t is the last policy token] * reward - coefficient * KL_t(policy || reference)

    penalty_BT is `kl_penalty`'s. A sequence without policy tokens (its reward failed, and may be NaN) gets 0.

    Shapes: rewards_B [B], penalty_BT and result [B, T], in reward units; 0 where masked.
    """
    return at_last_token(rewards_B, mask_BT) - penalty_BT
