"""Advantages of single tokens: generalised advantage estimation and the plain return."""

import torch


@torch.no_grad()
def gae(
    rewards_BT: torch.Tensor, values_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438, eq. 16).

        delta_t = r_t + gamma * V_t' - V_t
        A_t     = delta_t + gamma * lam * A_t'
        R_t     = A_t + V_t                       the value function's target

    t' is the next token that the policy wrote; after the last one V and A are 0, whatever ended the response. Tokens
    of an environment (mask 0) are part of the step that the policy token before them took: they neither discount nor
    decay, and a reward that stands on them belongs to that policy token. A reward before the first policy token was
    nobody's doing and is left out.

    values_t is V of the state in which token t was chosen. Masked values are never read, and masked rewards only after
    a policy token; there, padding must hold 0.

    Shapes: all [B, T]; rewards, values and both results (advantages, returns) in reward units, 0 where masked.
    """
    kept_BT = mask_BT > 0
    advantages_BT = torch.zeros_like(values_BT)
    pending_B, next_value_B, next_advantage_B = values_BT.new_zeros(3, len(values_BT)).unbind()
    for t in reversed(range(values_BT.shape[1])):
        kept_B, value_B, reward_B = kept_BT[:, t], values_BT[:, t], rewards_BT[:, t] + pending_B
        advantage_B = reward_B + gamma * next_value_B - value_B + gamma * lam * next_advantage_B
        pending_B = torch.where(kept_B, 0.0, reward_B)
        next_value_B = torch.where(kept_B, value_B, next_value_B)
        next_advantage_B = torch.where(kept_B, advantage_B, next_advantage_B)
        advantages_BT[:, t] = torch.where(kept_B, advantage_B, 0.0)
    return advantages_BT, torch.where(kept_BT, advantages_BT + values_BT, 0.0)


def discounted_returns(rewards_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float) -> torch.Tensor:
    """The raw return of each policy token: GAE with lambda 1 and no value function.

        R_t = r_t + gamma * R_t'                  t' the next policy token; the rules for environment tokens are `gae`'s

    Shapes: [B, T]; reward units, 0 where masked.
    """
    return gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT, gamma, lam=1.0)[0]
