"""The clipped surrogate loss of PPO."""

import torch

from rlpipe.algorithms.ratio import probability_ratio


def ppo_clip(
    logprobs_BT: torch.Tensor,
    old_logprobs_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped policy loss (Schulman et al. 2017, arXiv 1707.06347, eq. 7), with bounds that may differ (DAPO,
    arXiv 2503.14476).

        ratio = exp(logprob - old_logprob)
        loss  = -min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)

    Returns the loss of each token and whether the clip cut its gradient (1.0 or 0.0): the clipped branch is the
    smaller one, below 1 - clip_low with a negative advantage or above 1 + clip_high with a positive one.

    Shapes: all [B, T]; log-probabilities in nats. Nothing is masked here.
    """
    ratio_BT = probability_ratio(logprobs_BT - old_logprobs_BT)
    surrogate_BT = ratio_BT * advantages_BT
    bounded_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high) * advantages_BT
    clipped_BT = (bounded_BT < surrogate_BT).to(logprobs_BT.dtype)
    return -torch.minimum(surrogate_BT, bounded_BT), clipped_BT
