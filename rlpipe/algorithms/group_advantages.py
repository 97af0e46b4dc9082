"""Advantages relative to the other answers to the same prompt."""

import torch


def group_sums(values_B: torch.Tensor, groups_B: torch.Tensor) -> torch.Tensor:
    """For each sequence, the sum of `values_B` over its group. Groups are any integers, in any order."""
    index_B = torch.unique(groups_B, return_inverse=True)[1]
    sums_G = values_B.new_zeros(index_B.max().item() + 1 if index_B.numel() else 0)
    return sums_G.index_add(0, index_B, values_B)[index_B]


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
    valid_B = valid_B.bool()
    rewards_B = torch.where(valid_B, rewards_B, torch.zeros_like(rewards_B))
    count_B = group_sums(valid_B.to(rewards_B.dtype), groups_B)
    mean_B = group_sums(rewards_B, groups_B) / count_B.clamp(min=1)
    centred_B = torch.where(valid_B, rewards_B - mean_B, torch.zeros_like(rewards_B))
    std_B = (group_sums(centred_B.square(), groups_B) / (count_B - 1).clamp(min=1)).sqrt()
    # Rounding of the mean leaves a spread of about 1e-8 among equal rewards; without scaling, that would be trained on.
    signal_B = (count_B >= 2) & (std_B > 1e-6 * (1 + mean_B.abs()))
    advantages_B = centred_B / (std_B + epsilon) if scale_by_std else centred_B
    return torch.where(signal_B, advantages_B, torch.zeros_like(advantages_B))
