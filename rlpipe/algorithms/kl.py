"""Estimators of the KL divergence from samples (Schulman 2020, joschu.net/blog/kl-approx.html).

For tokens x drawn from p, with log r = log q(x) - log p(x), each has (about) the expectation KL(p || q), in nats.
All shapes are equal; nothing is masked here.
"""

from collections.abc import Callable

import torch


def k1(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """k1 = log p - log q. Unbiased, high variance, negative at times. As a loss term its gradient, that of log p, has
    expectation 0 on tokens drawn from p: it says how far the policy is, but does not pull it back."""
    return logprobs - reference_logprobs


def k2(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """k2 = (log r)^2 / 2. Biased, low variance; on tokens drawn from p its gradient is that of KL(p || q)."""
    return 0.5 * (reference_logprobs - logprobs).square()


def k3(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """k3 = r - 1 - log r. Unbiased, low variance, never negative; GRPO's choice (arXiv 2402.03300, eq. 4). On tokens
    drawn from p its gradient is that of KL(q || p): close to the reference the same as k2's, far from it stronger."""
    log_ratio = reference_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


KL_ESTIMATORS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
