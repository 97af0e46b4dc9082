"""Group Sequence Policy Optimization: the ratio of the whole answer instead of each token's."""

import torch

from rlpipe.algorithms.aggregate import keep
from rlpipe.algorithms.ppo_clip import ppo_clip


def gspo(
    logprobs_BT: torch.Tensor,
    old_logprobs_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GSPO's clipped policy loss (Zheng et al. 2025, arXiv 2507.18071, eq. 5 and 7) in its token form (eq. 13 and 14).

        s_i    = exp( 1/length_i * sum_t (logprob_it - old_logprob_it) )       the geometric mean of the token ratios
        s_it   = stop(s_i) * exp( logprob_it - stop(logprob_it) )              has the value s_i
        loss   = -min(s_it * A_it, clip(s_it, 1 - clip_low, 1 + clip_high) * A_it)

    Every token of a sequence has the sequence's ratio, and passes its gradient on to its own log-probability only.
    With one advantage for the whole sequence and `sequence_mean` weights the loss is the paper's eq. 5 and so is its
    gradient, s_i * A_i / length_i for each token. Advantages that differ within a sequence are allowed, and any
    aggregation. The ratio is that of a geometric mean: useful clips are of the order of 3e-4, not of 0.2.

    Sums and length go over the policy's tokens (mask above 0); a sequence must be whole in its row.

    Returns the loss of each token and whether the clip cut its gradient (1.0 or 0.0), both 0 where masked.

    Shapes: all [B, T]; log-probabilities in nats.
    """
    log_ratio_BT = keep(logprobs_BT - old_logprobs_BT, mask_BT)
    length_B1 = (mask_BT > 0).sum(-1, keepdim=True).clamp(min=1)
    sequence_log_ratio_B1 = log_ratio_BT.detach().sum(-1, keepdim=True) / length_B1
    token_log_ratio_BT = sequence_log_ratio_B1 + log_ratio_BT - log_ratio_BT.detach()
    return ppo_clip(
        token_log_ratio_BT, torch.zeros_like(token_log_ratio_BT), keep(advantages_BT, mask_BT), clip_low, clip_high
    )
