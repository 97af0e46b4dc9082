"""Flat batches to padded tensors and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlpipe.data.flow import TokenBatch, Tokens


@dataclass(frozen=True, slots=True)
class Padded:
    """Some sequences of a batch as tensors [B, T], padded on the right with 0.

    A causal model needs no attention mask for it: no token looks to its right. A micro-batch without sequences is one
    row of padding, so that an idle rank can take part in the collectives.
    """

    input_ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    behaviour_logprobs_BT: torch.Tensor
    advantages_BT: torch.Tensor | None = None
    """From here on as in `TokenBatch`: None where the batch has none."""
    old_logprobs_BT: torch.Tensor | None = None
    reference_logprobs_BT: torch.Tensor | None = None
    values_BT: torch.Tensor | None = None
    returns_BT: torch.Tensor | None = None
    weights_BT: torch.Tensor | None = None


def pad(batch: TokenBatch, sequences: Sequence[int], device: torch.device) -> Padded:
    """The given sequences of `batch`, in that order, on `device`."""
    inside_BT = _inside(batch.lengths_B[list(sequences)])
    positions = token_positions(batch, sequences)

    def spread(values_N: np.ndarray, dtype: type = np.float32) -> torch.Tensor:
        values_BT = np.zeros(inside_BT.shape, dtype=dtype)
        values_BT[inside_BT] = values_N[positions]
        return torch.from_numpy(values_BT).to(device)

    columns = batch.columns_N
    ids_BT = spread(columns.pop("tokens_N"), np.int64)
    return Padded(ids_BT, **{f"{name[:-1]}BT": spread(values_N) for name, values_N in columns.items()})


def token_positions(batch: TokenBatch, sequences: Sequence[int]) -> np.ndarray:
    """Indices of the tokens of these sequences in the batch's flat arrays, in that order."""
    spans = [np.arange(batch.offsets_B1[s], batch.offsets_B1[s + 1]) for s in sequences]
    return np.concatenate([*spans, np.zeros(0, dtype=np.int64)])


def flatten(values_BT: torch.Tensor, lengths_B: np.ndarray) -> np.ndarray:
    """The values of the sequences' own positions, end to end; float32 on the CPU. The reverse of `pad`."""
    values = values_BT.detach().float().cpu().numpy()
    return values[: len(lengths_B)][_inside(lengths_B)[: len(lengths_B)]]


def pad_tokens(sequences: Sequence[Tokens], device: torch.device, padding: int = 0) -> torch.Tensor:
    """Token ids [B, T] of loose sequences, padded on the right."""
    inside_BT = _inside(np.array([len(tokens) for tokens in sequences]))
    ids_BT = np.full(inside_BT.shape, padding, dtype=np.int64)
    ids_BT[: len(sequences)][inside_BT[: len(sequences)]] = np.concatenate([*sequences, np.zeros(0, np.int64)])
    return torch.from_numpy(ids_BT).to(device)


def _inside(lengths_B: np.ndarray) -> np.ndarray:
    """True on the positions of each sequence; at least one row and two columns."""
    lengths_B = lengths_B if len(lengths_B) else np.zeros(1, dtype=np.int64)
    return np.arange(max(2, int(lengths_B.max())))[None, :] < lengths_B[:, None]
