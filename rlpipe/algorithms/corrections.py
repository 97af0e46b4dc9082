"""Factors on each token's loss for data that another policy sampled than the one that is trained.

The engine's log-probabilities (behaviour) differ from the trainer's for the same weights, by kernels and precision, and
for older weights by staleness. All functions here compare

    ratio = exp(logprob - behaviour_logprob)

where logprobs_BT are the trainer's from before the first update on the batch. A PPO ratio against them comes in
addition: see `importance_weights`. Each returns factors_BT, without gradient and 0 where masked, and the number of
tokens that it cut, a scalar that adds up over micro-batches. A token whose factor is 0 stays in the denominator of the
loss: dropping tokens must not make the others weigh more.

Shapes: inputs and factors [B, T]; log-probabilities in nats. Only the policy's tokens (mask above 0) are read.
"""

import torch

from rlpipe.algorithms.aggregate import keep
from rlpipe.algorithms.ratio import probability_ratio


def importance_weights(
    logprobs_BT: torch.Tensor, behaviour_logprobs_BT: torch.Tensor, mask_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ratio itself, of each token; unbounded but for `probability_ratio`'s limit, so nothing is cut.

    Together with `ppo_clip` it makes decoupled PPO, whose trust region is not tied to the policy that sampled (Hilton
    et al. 2021, arXiv 2110.00641, section 3; for language models AReaL, Fu et al. 2025, arXiv 2505.24298, section 5.2):

        factor = proximal / behaviour                                   corrects for who sampled; no gradient
        ratio  = policy / proximal                                      what the clip bounds
        loss   = -factor * min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)

    behaviour is the engine's policy, perhaps some versions old; proximal the trainer's own from before the first update
    on this batch. With both the same this is PPO; with a capped factor it is `truncated_importance_weights`.
    """
    return _ratio(logprobs_BT, behaviour_logprobs_BT, mask_BT), mask_BT.new_zeros(())


def truncated_importance_weights(
    logprobs_BT: torch.Tensor, behaviour_logprobs_BT: torch.Tensor, mask_BT: torch.Tensor, cap: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Truncated importance sampling of tokens (Ionides 2008, doi 10.1198/106186008X320456; for engine against trainer
    Yao et al. 2025, fengyao.notion.site/off-policy-rl).

        factor = min(ratio, cap)                              cut: ratio > cap
    """
    ratio_BT = _ratio(logprobs_BT, behaviour_logprobs_BT, mask_BT)
    return ratio_BT.clamp(max=cap), _count(ratio_BT > cap, mask_BT)


def icepop_mask(
    logprobs_BT: torch.Tensor, behaviour_logprobs_BT: torch.Tensor, mask_BT: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """IcePop (Ring-1T, Ling Team 2025, arXiv 2510.18855): tokens on which engine and trainer disagree are left out, the
    others weighted.

        factor = ratio if low <= ratio <= high else 0         cut: the else
    """
    ratio_BT = _ratio(logprobs_BT, behaviour_logprobs_BT, mask_BT)
    inside_BT = (ratio_BT >= low) & (ratio_BT <= high)
    return keep(ratio_BT, inside_BT), _count(~inside_BT, mask_BT)


def sequence_mask(
    logprobs_BT: torch.Tensor, behaviour_logprobs_BT: torch.Tensor, mask_BT: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole sequences left out by the geometric mean of their tokens' ratios, which does not grow with their length.

        factor = 1 if low <= exp(mean_t(logprob_t - behaviour_logprob_t)) <= high else 0

    Cut are all tokens of a sequence left out.
    """
    with torch.no_grad():
        gap_BT = keep(logprobs_BT - behaviour_logprobs_BT, mask_BT)
        mean_B1 = torch.exp(gap_BT.sum(-1, keepdim=True) / (mask_BT > 0).sum(-1, keepdim=True).clamp(min=1))
    return _whole_sequences((mean_B1 >= low) & (mean_B1 <= high), mask_BT, logprobs_BT.dtype)


def worst_token_mask(
    logprobs_BT: torch.Tensor, behaviour_logprobs_BT: torch.Tensor, mask_BT: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole sequences left out for a single token's ratio, as one impossible token makes all that follows doubtful.

        factor = 1 if low <= ratio_t <= high for every t else 0

    Cut are all tokens of a sequence left out.
    """
    ratio_BT = _ratio(logprobs_BT, behaviour_logprobs_BT, mask_BT)
    fine_BT = (ratio_BT >= low) & (ratio_BT <= high) | (mask_BT <= 0)
    return _whole_sequences(fine_BT.all(-1, keepdim=True), mask_BT, logprobs_BT.dtype)


@torch.no_grad()
def _ratio(logprobs_BT: torch.Tensor, behaviour_logprobs_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    return keep(probability_ratio(logprobs_BT - behaviour_logprobs_BT), mask_BT)


def _whole_sequences(
    fine_B1: torch.Tensor, mask_BT: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    factors_BT = (fine_B1 & (mask_BT > 0)).to(dtype)
    return factors_BT, _count(~fine_B1, mask_BT)


def _count(cut_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    return (cut_BT & (mask_BT > 0)).sum().float()
