"""How far the trainer's log-probabilities are from those the rollout engine sampled with."""

import torch

from rlpipe.algorithms.aggregate import masked_sum
from rlpipe.algorithms.kl import k3


def mismatch_sums(
    logprobs_BT: torch.Tensor, behaviour_logprobs_BT: torch.Tensor, mask_BT: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Sums over response tokens of what tells trainer p from engine q, for tokens drawn from q:

        mismatch/abs         |log p - log q|, nats
        mismatch/kl          k3 estimate of KL(q || p), nats
        mismatch/weight      w = p / q, the importance weight
        mismatch/weight_sq   w^2

    Shapes: inputs [B, T], outputs scalars; divide by the number of response tokens for means. From the means of w and
    w^2, `effective_sample_size` follows.
    """
    with torch.no_grad():
        gap_BT = logprobs_BT - behaviour_logprobs_BT
        weight_BT = torch.exp(gap_BT)
        return {
            "mismatch/abs": masked_sum(gap_BT.abs(), mask_BT),
            "mismatch/kl": masked_sum(k3(behaviour_logprobs_BT, logprobs_BT), mask_BT),
            "mismatch/weight": masked_sum(weight_BT, mask_BT),
            "mismatch/weight_sq": masked_sum(weight_BT.square(), mask_BT),
        }


def effective_sample_size(weight_mean: float, weight_sq_mean: float) -> float:
    """Kish's effective sample size as a share of the tokens: E[w]^2 / E[w^2], in (0, 1]; 1 when all weights are equal.

    0 for an empty batch.
    """
    return weight_mean**2 / weight_sq_mean if weight_sq_mean > 0 else 0.0
