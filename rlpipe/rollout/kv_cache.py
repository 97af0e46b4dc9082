"""Keys and values of a running batch, and attention over them.

transformers repeats the key/value heads for every query head before attention: a copy of the whole cache in every
layer of every step. Here the query heads that share a key/value head are attended as so many queries of it, on a view
of the cache; measured on CPU, this is two to three times as fast.

Axis names: R rows, H query heads, G key/value heads, Q query positions, C cache columns, D head dimension.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

ATTENTION = "rlpipe_grouped"
"""`attn_implementation` of models that decode on this cache."""


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with shared key/value heads. query RHQD, key and value RGCD, boolean mask R1QC; returns RQHD."""
    rows, heads, queries, size = query.shape
    groups = key.shape[1]
    if queries == 1:
        attend = _one_query_on_cpu if query.device.type == "cpu" else scaled_dot_product_attention
        stacked = query.reshape(rows, groups, heads // groups, size)
        out = attend(stacked, key, value, attn_mask=attention_mask, scale=scaling)
        return out.reshape(rows, 1, heads, size), None
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=groups < heads
    )
    return out.transpose(1, 2), None


def _one_query_on_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """`scaled_dot_product_attention` written out: for one position, torch's CPU kernel takes two to seven times as long
    as two matrix products."""
    scores = (query @ key.transpose(-1, -2)) * (scale or query.shape[-1] ** -0.5)
    weights = scores.masked_fill(~attn_mask, float("-inf")).softmax(-1, dtype=torch.float32)
    return weights.to(value.dtype) @ value


AttentionInterface.register(ATTENTION, grouped_attention)


class SlabLayer(CacheLayerMixin):
    """One layer's keys and values in one allocation; `update` fills columns and returns views of all so far."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._columns = self._ahead = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows, groups, _, size = key_states.shape
        self.keys = key_states.new_empty(rows, groups, self._capacity, size)
        self.values = value_states.new_empty(rows, groups, self._capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self._columns = self._columns, self._columns + key_states.shape[2]
        self.keys[:, :, start : self._columns] = key_states
        self.values[:, :, start : self._columns] = value_states
        return self.keys[:, :, : self._columns], self.values[:, :, : self._columns]

    def begin_with(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Fill the first columns of an empty layer with what no token was read for; `capacity` does not count them."""
        self._ahead = keys.shape[2]
        self._capacity += self._ahead
        self.update(keys, values)

    def take(self, rows: torch.Tensor, capacity: int) -> "SlabLayer":
        """A new layer whose row i is this one's row rows[i]."""
        taken = SlabLayer(capacity + self._ahead)
        taken._ahead = self._ahead
        taken.update(self.keys[rows, :, : self._columns], self.values[rows, :, : self._columns])
        return taken

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows but these, in place: `rows` ascends, so nothing is overwritten before it is read."""
        count = len(rows)
        for slab in (self.keys, self.values):
            slab[:count, :, : self._columns] = slab[rows, :, : self._columns]
        self.keys, self.values = self.keys[:count], self.values[:count]

    def get_seq_length(self) -> int:
        return self._columns

    def get_max_length(self) -> int:
        return self._capacity

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._columns + query_length, 0


class SlabCache(Cache):
    """The cache of one running batch, in the form transformers' models take."""

    def __init__(self, layers: list[SlabLayer]) -> None:
        super().__init__(layers=layers)

    @classmethod
    def empty(cls, layer_count: int, capacity: int) -> "SlabCache":
        return cls([SlabLayer(capacity) for _ in range(layer_count)])

    def take(self, rows: torch.Tensor, capacity: int) -> "SlabCache":
        return SlabCache([layer.take(rows, capacity) for layer in self.layers])

    def keep(self, rows: torch.Tensor) -> None:
        for layer in self.layers:
            layer.keep(rows)
