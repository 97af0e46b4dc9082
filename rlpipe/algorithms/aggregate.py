"""Sums and means over the tokens that a mask keeps."""

import torch


def masked_sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum of `values` where `mask` is not 0, in the units of `values`; 0 for an empty or fully masked input.

    A masked value never reaches the sum, not even as `inf * 0`.
    """
    return torch.where(mask > 0, values * mask, torch.zeros_like(values)).sum()


def token_mean(loss_BT: torch.Tensor, mask_BT: torch.Tensor, normalizer: float) -> torch.Tensor:
    """Mean over all response tokens of an optimizer step (DAPO, Yu et al. 2025, arXiv 2503.14476, eq. 8).

        L = 1/N * sum_bt mask_bt * loss_bt

    `normalizer` N is the number of response tokens of the whole optimizer step, over every rank and micro-batch, so
    that adding up the results of any split of the step gives the same loss and the same gradient. 0 if there are none.

    Shapes: loss_BT, mask_BT [B, T]; result a scalar.
    """
    return masked_sum(loss_BT, mask_BT) / max(normalizer, 1.0)
