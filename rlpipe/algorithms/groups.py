"""What the answers to one prompt have in common: their count, mean and spread."""

from typing import NamedTuple

import torch

from rlpipe.algorithms.aggregate import beyond_rounding, group_sums, keep


class GroupStatistics(NamedTuple):
    """For each sequence, the statistics of its group over the group's valid rewards; all [B]."""

    count_B: torch.Tensor
    mean_B: torch.Tensor
    std_B: torch.Tensor
    """Sample standard deviation (n - 1)."""
    centred_B: torch.Tensor
    """Reward minus the group's mean; 0 where the reward failed."""
    signal_B: torch.Tensor
    """True in a group of at least two valid rewards that differ by more than rounding."""


def group_statistics(rewards_B: torch.Tensor, groups_B: torch.Tensor, valid_B: torch.Tensor) -> GroupStatistics:
    """Statistics over the valid rewards of each group; a reward that failed (it may be NaN) is never read. One valid
    reward is its own mean, so its std is 0 and it is no signal.

    Shapes: all [B]; groups are any integers, in any order; rewards in their own units.
    """
    valid_B = valid_B.bool()
    count_B = group_sums(valid_B.to(rewards_B.dtype), groups_B)
    mean_B = group_sums(keep(rewards_B, valid_B), groups_B) / count_B.clamp(min=1)
    centred_B = keep(rewards_B - mean_B, valid_B)
    std_B = (group_sums(centred_B.square(), groups_B) / (count_B - 1).clamp(min=1)).sqrt()
    return GroupStatistics(count_B, mean_B, std_B, centred_B, beyond_rounding(std_B, mean_B))


def has_signal(rewards_B: torch.Tensor, groups_B: torch.Tensor, valid_B: torch.Tensor) -> torch.Tensor:
    """Whether a sequence's group can teach anything: at least two valid rewards, not all equal. Dynamic sampling
    (DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.2) replaces the groups that cannot.

    Every member of a group gets the same answer, one whose own reward failed too. Shapes: all [B]; result bool.
    """
    return group_statistics(rewards_B, groups_B, valid_B).signal_B
