"""The kinds of policy loss by the name a recipe gives them."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from rlpipe.algorithms.aggregate import keep
from rlpipe.algorithms.cispo import cispo
from rlpipe.algorithms.dual_clip import dual_clip
from rlpipe.algorithms.gspo import gspo
from rlpipe.algorithms.policy_gradient import policy_gradient
from rlpipe.algorithms.ppo_clip import ppo_clip


class Tokens(NamedTuple):
    """A micro-batch, with 0 wherever it is masked: all [B, T], log-probabilities in nats."""

    logprobs_BT: torch.Tensor
    """With gradient."""
    old_logprobs_BT: torch.Tensor
    advantages_BT: torch.Tensor
    mask_BT: torch.Tensor

    @classmethod
    def kept(
        cls, logprobs_BT: torch.Tensor, old_BT: torch.Tensor, advantages_BT: torch.Tensor, mask_BT: torch.Tensor
    ) -> "Tokens":
        """Nothing under the mask reaches a loss, nor NaN from there its gradient."""
        return cls(keep(logprobs_BT, mask_BT), keep(old_BT, mask_BT), keep(advantages_BT, mask_BT), mask_BT)


Losses = tuple[torch.Tensor, torch.Tensor]
"""The loss of each token, and whether a clip cut it (1.0 or 0.0): [B, T]."""


def _ppo_clip(it: Tokens, clip_low: float, clip_high: float) -> Losses:
    return ppo_clip(it.logprobs_BT, it.old_logprobs_BT, it.advantages_BT, clip_low, clip_high)


def _dual_clip(it: Tokens, clip_low: float, clip_high: float, bound: float) -> Losses:
    return dual_clip(it.logprobs_BT, it.old_logprobs_BT, it.advantages_BT, clip_low, clip_high, bound)


def _gspo(it: Tokens, clip_low: float, clip_high: float) -> Losses:
    return gspo(it.logprobs_BT, it.old_logprobs_BT, it.advantages_BT, it.mask_BT, clip_low, clip_high)


def _cispo(it: Tokens, clip_low: float, clip_high: float) -> Losses:
    return cispo(it.logprobs_BT, it.old_logprobs_BT, it.advantages_BT, clip_low, clip_high)


def _policy_gradient(it: Tokens) -> Losses:
    return policy_gradient(it.logprobs_BT, it.advantages_BT)


LOSSES: dict[str, Callable[..., Losses]] = {
    "ppo_clip": _ppo_clip,
    "dual_clip": _dual_clip,
    "gspo": _gspo,
    "cispo": _cispo,
    "policy_gradient": _policy_gradient,
}
"""Each is called with a micro-batch and the kind's own settings."""
