"""PPO with a second bound, for actions that were bad and have become likely."""

import math

import torch

from rlpipe.algorithms.ppo_clip import ppo_clip


def dual_clip(
    logprobs_BT: torch.Tensor,
    old_logprobs_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    clip_low: float,
    clip_high: float,
    bound: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dual-clip PPO (Ye et al. 2020, arXiv 1912.09729, eq. 5): a negative advantage costs at most `bound` times itself,
    however large the ratio.

        loss = -min(ratio * A, clip(ratio) * A)                       for A >= 0, PPO's
        loss = -max(min(ratio * A, clip(ratio) * A), bound * A)       for A < 0

    `bound` (the paper's c, 3 there) is above 1, or the second bound would cut what the first allows; infinity is PPO.

    Returns the loss of each token and whether either clip cut its gradient (1.0 or 0.0).

    Shapes: all [B, T]; log-probabilities in nats. Nothing is masked here.
    """
    if bound <= 1:
        raise ValueError(f"dual clip needs a bound above 1 (the paper takes 3), not {bound}")
    log_ratio_BT, negative_BT = logprobs_BT - old_logprobs_BT, advantages_BT < 0
    # Capping the ratio there caps the loss, and unlike capping the loss it keeps the gradient of a huge ratio finite.
    capped_BT = torch.where(negative_BT, log_ratio_BT.clamp(max=math.log(bound)), log_ratio_BT)
    loss_BT, clipped_BT = ppo_clip(capped_BT, torch.zeros_like(capped_BT), advantages_BT, clip_low, clip_high)
    return loss_BT, torch.maximum(clipped_BT, (capped_BT < log_ratio_BT).to(clipped_BT.dtype))
