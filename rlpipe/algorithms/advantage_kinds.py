"""The kinds of advantage by the name a recipe gives them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from rlpipe.algorithms.aggregate import keep
from rlpipe.algorithms.gae import discounted_returns, gae
from rlpipe.algorithms.group_advantages import group_advantages
from rlpipe.algorithms.kl_in_reward import kl_in_reward
from rlpipe.algorithms.online_dpo import LossType, online_dpo
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
    old_logprobs_BT: torch.Tensor | None
    """The policy's before the update; None where nobody asked for them."""
    reference_logprobs_BT: torch.Tensor | None
    """None without a reference."""

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
    metrics: Mapping[str, float] = MappingProxyType({})
    """What else there is to say about it. Names as in `observe.metrics`."""


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


def _dpo(it: Rewarded, beta: float, loss_type: LossType) -> Signal:
    if it.old_logprobs_BT is None or it.reference_logprobs_BT is None:
        raise ValueError("advantage.kind=dpo compares Policy and Reference: ask both roles before the advantages")
    found = online_dpo(
        rewards_B=it.rewards_B,
        groups_B=it.groups_B,
        valid_B=it.valid_B,
        logprobs_BT=it.old_logprobs_BT,
        reference_logprobs_BT=it.reference_logprobs_BT,
        mask_BT=it.mask_BT,
        beta=beta,
        loss_type=loss_type,
    )
    chosen_P, rejected_P = found.implied_P2.unbind(-1)
    metrics = {
        "dpo/loss": found.loss,
        "dpo/pairs": torch.tensor(float(len(chosen_P))),
        "rewards/chosen": chosen_P.mean(),
        "rewards/rejected": rejected_P.mean(),
        "rewards/margins": (chosen_P - rejected_P).mean(),
        "rewards/accuracies": (chosen_P > rejected_P).float().mean(),
    }
    return _alike(found.advantages_BT)._replace(metrics={name: float(value) for name, value in metrics.items()})


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
    "dpo": _dpo,
}
"""Each is called with a step and the kind's own settings."""
