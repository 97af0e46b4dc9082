"""The kinds of advantage by the name a recipe gives them."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from rlpipe.algorithms.aggregate import keep
from rlpipe.algorithms.gae import discounted_returns, gae
from rlpipe.algorithms.group_advantages import group_advantages
from rlpipe.algorithms.kl_in_reward import kl_in_reward
from rlpipe.algorithms.reinforce_plus_plus import reinforce_plus_plus, reinforce_plus_plus_baseline
from rlpipe.algorithms.rloo import rloo
from rlpipe.algorithms.whiten import whiten as whitened


class Rewarded(NamedTuple):
    """A step's responses and what they earned."""

    rewards_B: torch.Tensor
    """Reward units; never read where the reward failed."""
    groups_B: torch.Tensor
    valid_B: torch.Tensor
    """False where the reward failed."""
    mask_BT: torch.Tensor
    penalty_BT: torch.Tensor
    """What leaving the reference costs, in reward units; 0 where masked, and everywhere without a KL in the reward."""
    values_BT: torch.Tensor | None
    """The critic's; None without one."""

    @property
    def per_token_BT(self) -> torch.Tensor:
        """The reward on the last policy token, less each token's penalty."""
        return kl_in_reward(self.rewards_B, self.penalty_BT, self.mask_BT)

    @property
    def per_sequence_B(self) -> torch.Tensor:
        """The reward less the penalties of all its tokens, as TRL's RLOO: the KL of the sequence."""
        return self.rewards_B - self.penalty_BT.sum(-1)


class Signal(NamedTuple):
    """What the step learns from: all [B, T], 0 where masked."""

    advantages_BT: torch.Tensor
    returns_BT: torch.Tensor
    """The critic's targets; for kinds without a critic the same as the advantages, and read by nobody."""


def _gae(it: Rewarded, gamma: float, lam: float, whiten: bool) -> Signal:
    if it.values_BT is None:
        raise ValueError("advantage.kind=gae needs values: ask the Critic role before the advantages")
    advantages_BT, returns_BT = gae(it.per_token_BT, it.values_BT, it.mask_BT, gamma, lam)
    return Signal(whitened(advantages_BT, it.mask_BT) if whiten else advantages_BT, returns_BT)


def _return(it: Rewarded, gamma: float, whiten: bool) -> Signal:
    returns_BT = discounted_returns(it.per_token_BT, it.mask_BT, gamma)
    return Signal(whitened(returns_BT, it.mask_BT) if whiten else returns_BT, returns_BT)


def _reinforce_plus_plus(it: Rewarded, gamma: float) -> Signal:
    return _alike(reinforce_plus_plus(it.per_token_BT, it.mask_BT, gamma))


def _group(it: Rewarded, scale_by_std: bool) -> Signal:
    return _on_every_token(group_advantages(it.per_sequence_B, it.groups_B, it.valid_B, scale_by_std), it.mask_BT)


def _rloo(it: Rewarded) -> Signal:
    return _on_every_token(rloo(it.per_sequence_B, it.groups_B, it.valid_B), it.mask_BT)


def _reinforce_plus_plus_baseline(it: Rewarded) -> Signal:
    advantages_B = reinforce_plus_plus_baseline(it.per_sequence_B, it.groups_B, it.valid_B)
    return _on_every_token(advantages_B, it.mask_BT)


def _on_every_token(advantages_B: torch.Tensor, mask_BT: torch.Tensor) -> Signal:
    return _alike(keep(advantages_B[:, None].expand_as(mask_BT), mask_BT))


def _alike(advantages_BT: torch.Tensor) -> Signal:
    return Signal(advantages_BT, advantages_BT)


ADVANTAGES: dict[str, Callable[..., Signal]] = {
    "gae": _gae,
    "group": _group,
    "rloo": _rloo,
    "reinforce++": _reinforce_plus_plus,
    "reinforce++_baseline": _reinforce_plus_plus_baseline,
    "return": _return,
}
"""Each is called with a step and the kind's own settings."""
