"""Models that the transformers engine serves with an adapter beside their weights, because it cannot be merged."""

from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from rlpipe.models import virtual_tokens
from rlpipe.models.trained_adapters import put_on
from rlpipe.rollout.kv_cache import SlabCache


def with_adapter(model: PreTrainedModel, base: str, folder: str) -> "tuple[PreTrainedModel | AfterVirtualTokens, int]":
    """The model as the adapter in `folder` makes it, and how many places of its context that takes. `base` is where the
    model came from. Raises `ModelError`."""
    adapted = put_on(model, Path(base), [Path(folder)]).to(model.device)
    adapted.requires_grad_(False).eval()
    if virtual_tokens.are_learned_in(adapted):
        with torch.inference_mode():
            learned = virtual_tokens.keys_and_values(adapted)
        return AfterVirtualTokens(model, learned), virtual_tokens.number_in(adapted)
    return adapted.get_base_model(), 0


class AfterVirtualTokens:
    """A model that goes on from virtual tokens in every row. Of those the keys and values are all that is left: they
    stand in the first columns of every cache, which nobody counts but here.

    Axis names as in `wave`, and N virtual tokens, G key/value heads, D head dimension.
    """

    def __init__(self, model: PreTrainedModel, learned: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """`learned` has of each layer the keys and values, 1GND."""
        self._model, self._learned = model, learned
        self._count = learned[0][0].shape[2]

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def config(self) -> PretrainedConfig:
        return self._model.config

    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: SlabCache | None = None,
        **options: Any,
    ) -> Any:
        """As the model. `attention_mask` (boolean, R1QC) and `position_ids` (RQ) are those of the real tokens."""
        cache = past_key_values
        if cache is None:
            cache = SlabCache.empty(len(self._learned), input_ids.shape[1])
        if cache.get_seq_length() == 0:
            self._begin(cache, len(input_ids))
        return self._model(
            input_ids=input_ids,
            attention_mask=torch.nn.functional.pad(attention_mask, (self._count, 0), value=True),
            position_ids=position_ids + self._count,
            past_key_values=cache,
            **options,
        )

    def _begin(self, cache: SlabCache, rows: int) -> None:
        for layer, (keys, values) in zip(cache.layers, self._learned, strict=True):
            layer.begin_with(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
