"""How much of the returns the critic foresaw."""

import torch

from rlpipe.algorithms.aggregate import masked_sum


def value_sums(values_BT: torch.Tensor, returns_BT: torch.Tensor, mask_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sums over response tokens, from whose means `explained_variance` follows:

        value/error      return - value
        value/error_sq   (return - value)^2
        value/return     return
        value/return_sq  return^2

    Shapes: inputs [B, T], outputs scalars that add up over micro-batches; reward units, or their square.
    """
    with torch.no_grad():
        error_BT = returns_BT - values_BT
        return {
            "value/error": masked_sum(error_BT, mask_BT),
            "value/error_sq": masked_sum(error_BT.square(), mask_BT),
            "value/return": masked_sum(returns_BT, mask_BT),
            "value/return_sq": masked_sum(returns_BT.square(), mask_BT),
        }


def explained_variance(error_mean: float, error_sq_mean: float, return_mean: float, return_sq_mean: float) -> float:
    """1 - Var(return - value) / Var(return): 1 for a perfect critic, 0 for a constant one, negative for a harmful one.

    0 where the returns do not vary (by more than rounding), so for an empty batch, too.
    """
    variance = return_sq_mean - return_mean**2
    if variance <= 1e-6 * return_sq_mean:
        return 0.0
    return 1.0 - (error_sq_mean - error_mean**2) / variance
