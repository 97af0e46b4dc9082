"""REINFORCE++: REINFORCE whose advantages are normalised over the whole batch."""

import torch

from rlpipe.algorithms.gae import discounted_returns
from rlpipe.algorithms.groups import group_statistics
from rlpipe.algorithms.whiten import whiten


def reinforce_plus_plus(rewards_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float = 1.0) -> torch.Tensor:
    """REINFORCE++'s advantage (Hu et al. 2025, arXiv 2501.03262): the return of each token, the KL penalty in it,
    normalised over all tokens of the batch.

        G_t = sum_{s >= t} gamma^(s - t) * r_s        r_s = [s is last] * reward - kl_coefficient * KL_s
        A_t = (G_t - mean(G)) / std(G)                over the batch's policy tokens

    rewards_BT are those of `kl_in_reward` (the paper takes k1 there), so a failed reward is masked: it is in neither
    mean nor std, and its advantages are 0. Environment tokens are as in `gae`.

    Shapes: [B, T]; advantages in standard deviations, 0 where masked.
    """
    return whiten(discounted_returns(rewards_BT, mask_BT, gamma), mask_BT)


def reinforce_plus_plus_baseline(
    rewards_B: torch.Tensor, groups_B: torch.Tensor, valid_B: torch.Tensor
) -> torch.Tensor:
    """REINFORCE++ with baseline (Hu et al. 2025, arXiv 2501.03262): the distance from the group's mean, in standard
    deviations of the whole batch instead of the group's.

        D_i = r_i - mean(r of i's group)
        A_i = (D_i - mean(D)) / std(D)                over the batch's sequences; mean(D) is 0

    The paper puts the KL beside it in the loss (k2), not in the reward. A reward that failed (valid_B false; never
    read, may be NaN) is in no mean and no std and gets 0. A group of one valid reward, or of equal ones, gets 0, too.

    Shapes: all [B]; advantages in standard deviations.
    """
    group = group_statistics(rewards_B, groups_B, valid_B)
    # mean(D) is 0 but for rounding, and without signal D is rounding only: neither may come out as an advantage.
    return whiten(torch.where(group.signal_B, group.centred_B, 0.0), valid_B) * group.signal_B
