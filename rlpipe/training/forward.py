"""Log-probabilities of the tokens of shards and of loose sequences, as every training role computes them."""

from collections.abc import Sequence

import numpy as np
import torch

from rlpipe.data.flow import Shard, Tokens
from rlpipe.models.logprobs import logprobs_and_entropy, token_logprobs
from rlpipe.training.padding import Padded, flatten, pad, pad_tokens


def response_logprobs(
    model: torch.nn.Module, padded: Padded, temperature: float, entropy_gradient: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """logprobs_BT with gradient, and entropy_BT, where the policy wrote the token; 0 elsewhere."""
    ids_BT = padded.input_ids_BT
    return logprobs_and_entropy(model, ids_BT, _no_mask(ids_BT), temperature, padded.mask_BT, entropy_gradient)


@torch.no_grad()
def shard_logprobs(model: torch.nn.Module, shard: Shard, device: torch.device, temperature: float) -> np.ndarray:
    """Log-probabilities of the response tokens of a shard, 0 at its other tokens; float32, end to end in the order of
    its micro-batches."""
    parts = []
    for sequences in shard.micro_batches:
        padded = pad(shard.batch, sequences, device)
        logprobs_BT = token_logprobs(
            model, padded.input_ids_BT, _no_mask(padded.input_ids_BT), temperature, padded.mask_BT
        )
        parts.append(flatten(logprobs_BT, shard.batch.lengths_B[list(sequences)]))
    return np.concatenate([*parts, np.zeros(0, dtype=np.float32)])


@torch.no_grad()
def sequence_logprobs(model: torch.nn.Module, sequences: Sequence[Tokens], device: torch.device) -> list[np.ndarray]:
    """Log-probabilities (temperature 1) of tokens 1.. of each sequence; float32, length len(sequence) - 1."""
    ids_BT = pad_tokens(sequences, device)
    logprobs_BT = token_logprobs(model, ids_BT, _no_mask(ids_BT), 1.0).cpu().numpy()
    return [row[1 : len(tokens)] for row, tokens in zip(logprobs_BT, sequences, strict=True)]


def _no_mask(ids_BT: torch.Tensor) -> torch.Tensor:
    """Padding is on the right, where a causal model does not look: calling all of it tokens keeps attention on its
    fast path, without a [B, 1, T, T] mask."""
    return torch.ones_like(ids_BT)
