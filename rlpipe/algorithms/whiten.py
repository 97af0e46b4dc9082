"""Rewards or advantages brought to unit standard deviation."""

import torch

from rlpipe.algorithms.aggregate import beyond_rounding, keep


def whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """Values in standard deviations from their mean. PPO for language models does so with advantages, and with rewards
    without shifting the mean, since github.com/openai/lm-human-preferences (Ziegler et al. 2019, arXiv 1909.08593).

        y = (x - mean(x)) / std(x)                over all x that the mask keeps
        y = (x - mean(x)) / std(x) + mean(x)      without `shift_mean`: the mean stays where it was

    std is the sample standard deviation (n - 1). What is masked is never read and gives 0. Where nothing differs (one
    value, or equal ones) the first term is 0: rounding is not blown up.

    Shapes: equal, any: [B] with valid_B, [B, T] with mask_BT; the whole batch at once, before it is split over ranks.
    """
    kept = mask > 0
    count = kept.sum()
    mean = keep(values, kept).sum() / count.clamp(min=1)
    centred = keep(values - mean, kept)
    std = (centred.square().sum() / (count - 1).clamp(min=1)).sqrt()
    spread = beyond_rounding(std, mean)
    whitened = centred * spread / torch.where(spread, std, torch.ones_like(std))
    return whitened if shift_mean else keep(whitened + mean, kept)
