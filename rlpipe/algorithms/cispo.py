"""Clipped IS-weight Policy Optimization: the weight is clipped, the token's gradient never is."""

import torch

from rlpipe.algorithms.ratio import probability_ratio


def cispo(
    logprobs_BT: torch.Tensor,
    old_logprobs_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """CISPO's policy loss (MiniMax-M1, Chen et al. 2025, arXiv 2506.13585, eq. 4 and 5).

        weight = clip(exp(logprob - old_logprob), 1 - clip_low, 1 + clip_high)
        loss   = -stop(weight) * A * logprob

    The paper leaves the lower bound out: clip_low of 1 or more does that.

    Returns the loss of each token and whether its weight was clipped (1.0 or 0.0); a clipped token still has the
    gradient -weight * A.

    Shapes: all [B, T]; log-probabilities in nats. Nothing is masked here.
    """
    ratio_BT = probability_ratio(logprobs_BT - old_logprobs_BT).detach()
    weight_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    return -weight_BT * advantages_BT * logprobs_BT, (weight_BT != ratio_BT).to(logprobs_BT.dtype)
