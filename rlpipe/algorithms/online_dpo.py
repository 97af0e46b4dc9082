"""Online DPO: the best and the worst of a group of samples as a preference, made into what each sequence counts.

The gradient of a loss on pairs is a sum over sequences. With the log-ratio of sequence s to the reference, the margin
of a pair (chosen w, rejected l), and l(h) the loss of a margin,

    D_s = sum_t [ logprob_st - reference_logprob_st ]        h = D_w - D_l
    grad mean_pairs l(h) = 1 / P * sum_pairs l'(h) * ( grad D_w - grad D_l )

so once every h is known, partners need not meet again: each sequence has the policy gradient of an advantage, -l'(h)
for the chosen and l'(h) for the rejected. That is exact while the policy is the one that h was taken from, in the first
update on a batch, and no split into micro-batches or ranks changes it.
"""

from typing import Literal, NamedTuple

import torch

from rlpipe.algorithms.aggregate import keep
from rlpipe.algorithms.groups import has_signal

LossType = Literal["sigmoid", "ipo"]


class Preferences(NamedTuple):
    """What a step's pairs say."""

    advantages_BT: torch.Tensor
    loss: torch.Tensor
    """The mean over pairs, a scalar; 0 without any."""
    implied_P2: torch.Tensor
    """beta * D of the chosen and of the rejected, the rewards that policy and reference imply, in nats."""


def online_dpo(
    *,
    rewards_B: torch.Tensor,
    groups_B: torch.Tensor,
    valid_B: torch.Tensor,
    logprobs_BT: torch.Tensor,
    reference_logprobs_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    beta: float,
    loss_type: LossType,
) -> Preferences:
    """DPO on pairs that the policy itself sampled (Rafailov et al. 2023, arXiv 2305.18290; online: Guo et al. 2024,
    arXiv 2402.04792), as advantages of the present policy's own gradient.

        A_wt = -l'(h) * S / P        A_lt = l'(h) * S / P        0 for everything else

    See `pair_loss` for l, `best_and_worst` for who is in a pair. ipo takes the mean over a response's tokens in place
    of the sum in D, as TRL does; its advantages are then divided by the response's length. P are the pairs and S the
    sequences that have a token to learn from: with each sequence's tokens added up and divided by S (aggregation
    `sequence_mean_token_sum`), the policy gradient -A * logprob has the gradient of the mean over pairs.

    logprobs_BT are those of the policy that is about to be updated.

    Shapes: rewards_B, groups_B (any integers) and valid_B [B], the others [B, T], log-probabilities in nats, mask 1.0
    where the policy wrote the token. Without a pair all advantages are 0.
    """
    lengths_B = mask_BT.sum(-1)
    log_ratios_B = keep(logprobs_BT - reference_logprobs_BT, mask_BT).sum(-1)
    scale_B = lengths_B.clamp(min=1).reciprocal() if loss_type == "ipo" else torch.ones_like(lengths_B)
    chosen_P, rejected_P = best_and_worst(rewards_B, groups_B, valid_B)
    compared_B = log_ratios_B * scale_B
    loss_P, slope_P = pair_loss(compared_B[chosen_P] - compared_B[rejected_P], beta, loss_type)
    advantages_B = torch.zeros_like(log_ratios_B)
    share = (lengths_B > 0).sum() / max(1, len(chosen_P))
    advantages_B[chosen_P], advantages_B[rejected_P] = -slope_P * share, slope_P * share
    advantages_BT = (advantages_B * scale_B)[:, None] * (mask_BT > 0)
    implied_P2 = beta * torch.stack([log_ratios_B[chosen_P], log_ratios_B[rejected_P]], dim=-1)
    return Preferences(advantages_BT, loss_P.sum() / max(1, len(loss_P)), implied_P2)


def pair_loss(margins_P: torch.Tensor, beta: float, loss_type: LossType) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each pair and its derivative with respect to the margin.

        sigmoid    l = -log sigmoid(beta * h)           l' = -beta * sigmoid(-beta * h)    DPO (arXiv 2305.18290, eq. 7)
        ipo        l = (h - 1 / (2 * beta))^2           l' = 2 * (h - 1 / (2 * beta))      IPO (Azar et al. 2023,
                                                                                          arXiv 2310.12036, eq. 17)

    Shapes: [P]; margins in nats.
    """
    if loss_type == "sigmoid":
        return -torch.nn.functional.logsigmoid(beta * margins_P), -beta * torch.sigmoid(-beta * margins_P)
    distance_P = margins_P - 1 / (2 * beta)
    return distance_P.square(), 2 * distance_P


def best_and_worst(
    rewards_B: torch.Tensor, groups_B: torch.Tensor, valid_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each group the sequence with the highest and the one with the lowest reward, by index; the first among equals.

    A reward that failed (valid_B false; never read) takes no part. A group of fewer than two valid rewards, or of equal
    ones, has no pair.

    Shapes: inputs [B]; both results [P], in the order of the groups' numbers.
    """
    pairs = []
    for group in torch.unique(groups_B[has_signal(rewards_B, groups_B, valid_B)]):
        members = torch.nonzero((groups_B == group) & valid_B.bool())[:, 0]
        found = rewards_B[members]
        pairs.append(torch.stack([members[found.argmax()], members[found.argmin()]]))
    chosen_P, rejected_P = torch.stack(pairs, dim=-1) if pairs else torch.zeros(2, 0, dtype=torch.long)
    return chosen_P, rejected_P
