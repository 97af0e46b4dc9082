"""Rewards within bounds."""

import torch


def clip_rewards(rewards_B: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Rewards limited to [low, high], so that one outlier of a reward model does not set the scale of a batch. A reward
    that failed stays what it was, NaN included; what uses it has valid_B.

    Shapes: [B]; reward units.
    """
    return rewards_B.clamp(low, high)
