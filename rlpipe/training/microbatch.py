"""Planning an optimizer step: which rank takes which sequences, in which micro-batches. Pure and deterministic."""

import heapq
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlpipe.data.flow import Shard, TokenBatch
from rlpipe.training.padding import token_positions

MicroBatches = tuple[tuple[int, ...], ...]
"""Sequence ids of each micro-batch of one rank, longest sequences first; empty ones at the end."""


def split_minibatches(groups_B: np.ndarray, minibatches: int) -> list[np.ndarray]:
    """Sequence ids of each of `minibatches` optimizer steps; whole groups together, in the batch's order.

    groups_B names each sequence's group. Steps get equally many groups, the first ones one more where it does not
    divide.
    """
    names, first = np.unique(groups_B, return_index=True)
    if len(names) < minibatches:
        raise ValueError(f"{len(names)} groups cannot fill {minibatches} minibatches: lower train.minibatches")
    parts = np.array_split(names[np.argsort(first)], minibatches)
    return [np.flatnonzero(np.isin(groups_B, part)) for part in parts]


def plan_micro_batches(
    lengths_B: np.ndarray, sequences: Sequence[int], ranks: int, tokens_per_micro_batch: int
) -> list[MicroBatches]:
    """Spread the given sequences over ranks and cut each rank's part into micro-batches of similar lengths.

    Every rank gets about equally many tokens and exactly as many micro-batches as the others. A micro-batch padded to
    its longest sequence stays within `tokens_per_micro_batch`, except that a sequence longer than that is alone.
    """
    per_rank = [_cut(lengths_B, part, tokens_per_micro_batch) for part in _balance(lengths_B, sequences, ranks)]
    count = max(len(micro_batches) for micro_batches in per_rank)
    return [tuple(part) + ((),) * (count - len(part)) for part in per_rank]


def make_shards(batch: TokenBatch, plan: Sequence[MicroBatches], kl_coefficient: float = 0.0) -> list[Shard]:
    """One shard per rank of `plan`, each holding only its own sequences."""
    return [_shard(batch, part, kl_coefficient) for part in plan]


def plan_step(
    batch: TokenBatch, sequences: Sequence[int], ranks: int, tokens_per_micro_batch: int, kl_coefficient: float = 0.0
) -> list[Shard]:
    """The shards of one optimizer step over `sequences` of `batch`, one per rank."""
    plan = plan_micro_batches(batch.lengths_B, sequences, ranks, tokens_per_micro_batch)
    return make_shards(batch, plan, kl_coefficient)


def collect(batch: TokenBatch, plan: Sequence[MicroBatches], parts: Sequence[np.ndarray]) -> np.ndarray:
    """Put flat per-token results of the ranks (`Policy.logprobs` of each of `make_shards(batch, plan)`) back into the
    batch's order; float32 [N], 0 for sequences that `plan` leaves out."""
    result_N = np.zeros(len(batch.tokens_N), dtype=np.float32)
    for micro_batches, part in zip(plan, parts, strict=True):
        result_N[token_positions(batch, _ids(micro_batches))] = part
    return result_N


def _ids(micro_batches: MicroBatches) -> list[int]:
    return [sequence for micro_batch in micro_batches for sequence in micro_batch]


def _balance(lengths_B: np.ndarray, sequences: Sequence[int], ranks: int) -> list[list[int]]:
    """Longest first, each to the rank with the fewest tokens so far (ties: fewest sequences, then lowest rank)."""
    parts: list[list[int]] = [[] for _ in range(ranks)]
    least = [(0, 0, rank) for rank in range(ranks)]  # a heap of tokens, sequences and rank
    for sequence in _longest_first(lengths_B, sequences):
        tokens, count, rank = least[0]
        parts[rank].append(sequence)
        heapq.heapreplace(least, (tokens + int(lengths_B[sequence]), count + 1, rank))
    return parts


def _longest_first(lengths_B: np.ndarray, sequences: Sequence[int]) -> list[int]:
    return sorted((int(s) for s in sequences), key=lambda s: (-int(lengths_B[s]), s))


def _cut(lengths_B: np.ndarray, ordered: list[int], budget: int) -> list[tuple[int, ...]]:
    """Consecutive runs of the sequences, longest first, that compute as few positions as possible, padding included.

    Every run is charged `budget / 64` positions on top, for what a forward and backward costs whatever its size.
    """
    longest = np.array([lengths_B[s] for s in ordered], dtype=np.int64)  # of a run that starts here
    cost, start = np.zeros(len(ordered) + 1), np.zeros(len(ordered) + 1, dtype=np.int64)
    for end in range(1, len(ordered) + 1):
        most = budget // max(1, int(longest[end - 1]))  # longer ones come first: no more of them fit
        begin = max(0, end - max(1, most))
        positions = (end - np.arange(begin, end)) * longest[begin:end]
        feasible = positions <= budget
        feasible[-1] = True
        total = np.where(feasible, cost[begin:end] + positions + budget / 64, np.inf)
        start[end] = begin + total.argmin()
        cost[end] = total[start[end] - begin]
    cuts, end = [], len(ordered)
    while end:
        cuts.append(tuple(ordered[start[end] : end]))
        end = start[end]
    return cuts[::-1]


def _shard(batch: TokenBatch, micro_batches: MicroBatches, kl_coefficient: float) -> Shard:
    ids = iter(range(len(_ids(micro_batches))))
    local = tuple(tuple(next(ids) for _ in micro_batch) for micro_batch in micro_batches)
    return Shard(_select(batch, _ids(micro_batches)), local, kl_coefficient)


def _select(batch: TokenBatch, sequences: list[int]) -> TokenBatch:
    """The batch that holds only these sequences, in this order."""
    positions = token_positions(batch, sequences)
    offsets_B1 = np.concatenate([[0], np.cumsum(batch.lengths_B[sequences])]).astype(np.int64)
    picked = {name: values_N[positions] for name, values_N in batch.columns_N.items()}
    return replace(batch, offsets_B1=offsets_B1, **picked)
