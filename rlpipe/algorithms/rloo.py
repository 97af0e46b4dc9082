"""REINFORCE with a leave-one-out baseline."""

import torch

from rlpipe.algorithms.aggregate import keep
from rlpipe.algorithms.groups import group_statistics


def rloo(rewards_B: torch.Tensor, groups_B: torch.Tensor, valid_B: torch.Tensor) -> torch.Tensor:
    """RLOO's advantage: how much better than the mean of the other answers (Ahmadian et al. 2024, arXiv 2402.14740,
    after Kool et al. 2019).

        A_i = r_i - 1 / (n - 1) * sum_{j != i} r_j  =  n / (n - 1) * (r_i - mean(r))

    over the n valid rewards of i's group. A reward that failed (valid_B false; its value is never read and may be NaN)
    is in nobody's baseline and gets 0; so does a group with fewer than two valid rewards, or with no spread.

    Shapes: all [B]; advantages in the reward's own units.
    """
    group = group_statistics(rewards_B, groups_B, valid_B)
    others_B = (group.count_B - 1).clamp(min=1)
    return keep(group.centred_B * group.count_B / others_B, group.signal_B)
