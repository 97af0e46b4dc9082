"""What trains the critic."""

import torch


def value_loss(
    values_BT: torch.Tensor, old_values_BT: torch.Tensor, returns_BT: torch.Tensor, clip: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared error of the value function, clipped around its old predictions (PPO as implemented by its authors:
    github.com/openai/baselines, ppo2; Schulman et al. 2017, arXiv 1707.06347, eq. 9 has it without clip).

        bounded = old_value + clamp(value - old_value, -clip, clip)
        loss    = 1/2 * max( (value - return)^2, (bounded - return)^2 )

    `clip` is in the units of the reward; None leaves the bound out.

    Returns the loss of each token and whether the clip cut its gradient (1.0 or 0.0).

    Shapes: all [B, T]; values and returns in reward units, the loss in their square. Nothing is masked here.
    """
    error_BT = (values_BT - returns_BT).square()
    if clip is None:
        return 0.5 * error_BT, torch.zeros_like(error_BT)
    change_BT = values_BT - old_values_BT
    bounded_error_BT = (old_values_BT + change_BT.clamp(-clip, clip) - returns_BT).square()
    # Within the clip the two errors differ by rounding only, which is no clipping.
    clipped_BT = (bounded_error_BT > error_BT) & (change_BT.abs() > clip)
    return 0.5 * torch.maximum(error_BT, bounded_error_BT), clipped_BT.to(values_BT.dtype)
