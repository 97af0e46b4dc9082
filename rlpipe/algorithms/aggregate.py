"""Sums, means and weights over the tokens that a mask keeps."""

from typing import Literal, get_args

import torch

Aggregation = Literal["token_mean", "sequence_mean", "sequence_mean_token_sum", "constant"]
"""How the losses of an optimizer step's tokens become one number; see `token_weights`."""


def keep(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`values` where `mask` is not 0, else 0: NaN and infinity under the mask are gone, and so is their gradient."""
    return torch.where(mask > 0, values, torch.zeros_like(values))


def masked_sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum of `values` where `mask` is not 0, in the units of `values`; 0 for an empty or fully masked input.

    A masked value never reaches the sum, not even as `inf * 0`.
    """
    return torch.where(mask > 0, values * mask, torch.zeros_like(values)).sum()


def token_weights(
    kind: Aggregation, mask_N: torch.Tensor, sequence_of_N: torch.Tensor, constant: float | None = None
) -> torch.Tensor:
    """The weight of each token's loss in the loss of an optimizer step.

        L = sum_n weight_n * loss_n

        token_mean                1 / tokens                         DAPO (Yu et al. 2025, arXiv 2503.14476, eq. 8)
        sequence_mean             1 / (sequences * length_i)         GRPO (Shao et al. 2024, arXiv 2402.03300, eq. 3)
        sequence_mean_token_sum   1 / sequences                      sum over tokens, mean over sequences
        constant                  1 / (sequences * constant)         Dr.GRPO (Liu et al. 2025, arXiv 2503.20783)

    Computed once over the whole step, so that the loss is a plain sum and no split into micro-batches or ranks can
    change its gradient: `masked_sum(loss_BT, weights_BT)` of each micro-batch, added up.

    mask_N is 1.0 where the policy wrote the token, else 0.0. length_i counts those tokens of the token's own sequence,
    `sequences` the sequences that have any: one whose reward failed, its mask all 0, is in no denominator.
    sequence_of_N says which sequence a token belongs to (any integers). `constant` is Dr.GRPO's fixed length in tokens,
    usually the longest response allowed. Without response tokens every weight is 0.

    Shapes: all [N], the step's sequences end to end; the result has mask_N's type, in 1 / token.
    """
    sequences = torch.unique(sequence_of_N[mask_N > 0]).numel()
    if kind == "token_mean":
        denominator_N = mask_N.sum()
    elif kind == "sequence_mean":
        denominator_N = sequences * group_sums(mask_N, sequence_of_N)
    elif kind == "sequence_mean_token_sum":
        denominator_N = sequences
    elif kind == "constant":
        if constant is None or constant <= 0:
            raise ValueError(f"aggregation 'constant' needs a length above 0 to divide by, not {constant}")
        denominator_N = sequences * constant
    else:
        raise ValueError(f"aggregation {kind!r} is unknown; there are: {', '.join(get_args(Aggregation))}")
    return keep(mask_N / denominator_N, mask_N)


def group_sums(values_B: torch.Tensor, groups_B: torch.Tensor) -> torch.Tensor:
    """For each element, the sum of `values_B` over its group. Groups are any integers, in any order."""
    index_B = torch.unique(groups_B, return_inverse=True)[1]
    sums_G = values_B.new_zeros(index_B.max().item() + 1 if index_B.numel() else 0)
    return sums_G.index_add(0, index_B, values_B)[index_B]


def beyond_rounding(std: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Whether a standard deviation is more than rounding of the mean leaves among equal float32 values: about 1e-8 of
    the mean, which would be trained on as if it were a difference."""
    return std > 1e-6 * (1 + mean.abs())
