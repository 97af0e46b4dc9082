"""From scored groups to the flat arrays a step trains on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from rlpipe.algorithms.online import OnlineAlgorithm
from rlpipe.algorithms.shaping_kinds import Scored
from rlpipe.data.flow import FinishReason, Group, Score, TokenBatch, Trajectory
from rlpipe.training.padding import flatten, pad, token_positions

CPU = torch.device("cpu")


def scored(groups: Sequence[Group]) -> Scored:
    """What rewards and lengths the groups' responses have, in their order."""
    trajectories = [t for group in groups for t in group.trajectories]
    outcomes = [o for group in groups for o in group.outcomes]
    return Scored(
        rewards_B=torch.tensor([o.value if isinstance(o, Score) else 0.0 for o in outcomes]),
        valid_B=torch.tensor([isinstance(o, Score) for o in outcomes]),
        lengths_B=torch.tensor([int(t.response_mask.sum()) for t in trajectories]),
        truncated_B=torch.tensor([t.finish_reason is FinishReason.LENGTH for t in trajectories]),
    )


def token_batch(groups: Sequence[Group], valid_B: torch.Tensor) -> TokenBatch:
    """One flat batch, in group order. A response that is not valid keeps its place with mask 0."""
    trajectories = [t for group in groups for t in group.trajectories]
    lengths = [len(t.prompt_tokens) + len(t.response_tokens) for t in trajectories]
    masks = [t.response_mask * float(ok) for t, ok in zip(trajectories, valid_B.tolist(), strict=True)]
    return TokenBatch(
        tokens_N=_flat(trajectories, [t.response_tokens for t in trajectories], prompts=True, dtype=np.int32),
        offsets_B1=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        mask_N=_flat(trajectories, masks),
        behaviour_logprobs_N=_flat(trajectories, [t.behaviour_logprobs for t in trajectories]),
    )


def with_signal(
    batch: TokenBatch, groups: Sequence[Group], shaped: Scored, algorithm: OnlineAlgorithm, kl_coefficient: float
) -> tuple[TokenBatch, Mapping[str, float]]:
    """The batch with advantages, and targets if there is a critic; and what the algorithm says about them. Log-
    probabilities and values must be there."""
    padded = pad(batch, range(len(batch.lengths_B)), CPU)
    signal = algorithm.signal(
        rewards_B=shaped.rewards_B,
        groups_B=torch.tensor([i for i, group in enumerate(groups) for _ in group.outcomes]),
        valid_B=shaped.valid_B,
        mask_BT=padded.mask_BT,
        kl_coefficient=kl_coefficient,
        old_logprobs_BT=padded.old_logprobs_BT,
        reference_logprobs_BT=padded.reference_logprobs_BT,
        values_BT=padded.values_BT,
    )
    returns_N = flatten(signal.returns_BT, batch.lengths_B) if algorithm.needs_critic else None
    advantages_N = flatten(signal.advantages_BT, batch.lengths_B)
    return replace(batch, advantages_N=advantages_N, returns_N=returns_N), signal.metrics


def with_weights(batch: TokenBatch, steps: Sequence[np.ndarray], algorithm: OnlineAlgorithm) -> TokenBatch:
    """The batch with every token's weight in its own optimizer step; `steps` are the sequences of each step."""
    weights_N = np.zeros(len(batch.tokens_N), dtype=np.float32)
    sequence_of_N = np.repeat(np.arange(len(batch.lengths_B)), batch.lengths_B)
    for sequences in steps:
        positions = token_positions(batch, sequences.tolist())
        mask_N, sequence_N = torch.from_numpy(batch.mask_N[positions]), torch.from_numpy(sequence_of_N[positions])
        weights_N[positions] = algorithm.weights(mask_N, sequence_N).numpy()
    return replace(batch, weights_N=weights_N)


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
