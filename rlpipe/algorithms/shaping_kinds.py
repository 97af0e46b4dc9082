"""The kinds of reward shaping by the name a recipe gives them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from rlpipe.algorithms.clip_rewards import clip_rewards
from rlpipe.algorithms.overlong import soft_overlong_penalty, truncation_penalty, without_truncated
from rlpipe.algorithms.whiten import whiten


@dataclass(frozen=True, slots=True)
class Scored:
    """A step's responses: all [B]."""

    rewards_B: torch.Tensor
    """Reward units; any value where the reward failed."""
    valid_B: torch.Tensor
    """False where the reward failed, or the response is not to be trained on."""
    lengths_B: torch.Tensor
    """Response tokens."""
    truncated_B: torch.Tensor
    """Whether the length limit cut the response off."""


def _overlong(it: Scored, max_new_tokens: int, buffer: int | str) -> Scored:
    tokens = max(1, max_new_tokens // 5) if buffer == "auto" else buffer
    return replace(it, rewards_B=it.rewards_B + soft_overlong_penalty(it.lengths_B, max_new_tokens, tokens))


def _truncation_penalty(it: Scored, max_new_tokens: int, penalty: float) -> Scored:
    return replace(it, rewards_B=truncation_penalty(it.rewards_B, it.truncated_B, penalty))


def _mask_truncated(it: Scored, max_new_tokens: int) -> Scored:
    return replace(it, valid_B=without_truncated(it.valid_B, it.truncated_B))


def _clip(it: Scored, max_new_tokens: int, low: float, high: float) -> Scored:
    return replace(it, rewards_B=clip_rewards(it.rewards_B, low, high))


def _whiten(it: Scored, max_new_tokens: int) -> Scored:
    return replace(it, rewards_B=whiten(it.rewards_B, it.valid_B, shift_mean=False))


SHAPINGS: dict[str, Callable[..., Scored]] = {
    "overlong": _overlong,
    "truncation_penalty": _truncation_penalty,
    "mask_truncated": _mask_truncated,
    "clip": _clip,
    "whiten": _whiten,
}
"""Each is called with a step, the longest response allowed and the kind's own settings."""
