"""The probability ratio of two policies."""

import torch

LARGEST_LOG_RATIO = 20.0
"""Nats. exp overflows float32 above 88, and infinity times an advantage of 0, or times the 0 gradient of the branch
that a clip did not choose, is NaN. A ratio of e^20 is 5e8: no clip, cap or mask tells it from a larger one."""


def probability_ratio(log_ratio: torch.Tensor) -> torch.Tensor:
    """exp(log_ratio), finite with a finite gradient; beyond 20 nats it is constant, its gradient 0.

    Any shape; log-probability differences in nats.
    """
    return torch.exp(log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
