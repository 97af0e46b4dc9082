"""From scored groups to the flat arrays a step trains on."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from rlpipe.data.flow import Group, Score, TokenBatch, Trajectory


class Advantages(Protocol):
    """The part of an algorithm that turns rewards into advantages."""

    def advantages(self, rewards_B: torch.Tensor, groups_B: torch.Tensor, valid_B: torch.Tensor) -> torch.Tensor: ...


def token_batch(groups: Sequence[Group], algorithm: Advantages) -> TokenBatch:
    """One flat batch, in group order. A response whose reward failed keeps its place with mask and advantage 0."""
    trajectories = [t for group in groups for t in group.trajectories]
    valid_B = np.array([isinstance(o, Score) for group in groups for o in group.outcomes])
    advantages_B = _advantages(groups, valid_B, algorithm)
    lengths = [len(t.prompt_tokens) + len(t.response_tokens) for t in trajectories]
    masks = [t.response_mask * float(ok) for t, ok in zip(trajectories, valid_B, strict=True)]
    return TokenBatch(
        tokens_N=_flat(trajectories, [t.response_tokens for t in trajectories], prompts=True, dtype=np.int32),
        offsets_B1=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        mask_N=_flat(trajectories, masks),
        behaviour_logprobs_N=_flat(trajectories, [t.behaviour_logprobs for t in trajectories]),
        advantages_N=_flat(trajectories, [m * a for m, a in zip(masks, advantages_B, strict=True)]),
    )


def _advantages(groups: Sequence[Group], valid_B: np.ndarray, algorithm: Advantages) -> np.ndarray:
    rewards_B = [o.value if isinstance(o, Score) else 0.0 for group in groups for o in group.outcomes]
    groups_B = [i for i, group in enumerate(groups) for _ in group.outcomes]
    return algorithm.advantages(
        torch.tensor(rewards_B, dtype=torch.float32), torch.tensor(groups_B), torch.from_numpy(valid_B)
    ).numpy()


def _flat(
    trajectories: Sequence[Trajectory], responses: Sequence[np.ndarray], prompts: bool = False, dtype: type = np.float32
) -> np.ndarray:
    """Responses end to end, each after its prompt (its tokens, or as many zeros)."""
    parts = [
        part
        for t, response in zip(trajectories, responses, strict=True)
        for part in (t.prompt_tokens if prompts else np.zeros(len(t.prompt_tokens)), response)
    ]
    return np.concatenate(parts).astype(dtype)
