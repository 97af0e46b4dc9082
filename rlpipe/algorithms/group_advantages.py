"""Advantages relative to the other answers to the same prompt."""

import torch

from rlpipe.algorithms.aggregate import keep
from rlpipe.algorithms.groups import group_statistics


def group_advantages(
    rewards_B: torch.Tensor,
    groups_B: torch.Tensor,
    valid_B: torch.Tensor,
    scale_by_std: bool,
    epsilon: float = 1e-4,
) -> torch.Tensor:
    """GRPO's advantage: how much better than its group's mean (Shao et al. 2024, arXiv 2402.03300, section 4.1.2).

        A_i = (r_i - mean(r)) / (std(r) + epsilon)        mean and std over the valid rewards of i's group

    std is the sample standard deviation (n - 1), and epsilon 1e-4, as in TRL. Without `scale_by_std` the division is
    left out (Dr.GRPO, Liu et al. 2025, arXiv 2503.20783).

    A reward that failed (valid_B false; its value is never read and may be NaN) is left out of mean and std and gets
    advantage 0. So does every member of a group with fewer than two valid rewards, or with no spread.

    Shapes: all [B]; rewards in the reward's own units, advantages in standard deviations (or reward units).
    """
    group = group_statistics(rewards_B, groups_B, valid_B)
    advantages_B = group.centred_B / (group.std_B + epsilon) if scale_by_std else group.centred_B
    return keep(advantages_B, group.signal_B)
