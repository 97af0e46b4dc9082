"""The barest decoding loop on a transformers model: static cache, each prompt prefilled once for its whole group.

Axis names: G groups, S samples of a group, B = G x S rows, P prompt positions (padded on the left), T new tokens,
H query heads, K key/value heads, C cache columns, D head dimension.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

ATTENTION = "bench_grouped"


def grouped_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """While decoding, the query heads that share a key/value head are so many queries of it, and no key or value is
    copied; transformers' own way repeats the whole cache in every layer of every step."""
    rows, heads, queries, _ = query.shape
    scale = options.get("scaling")
    if queries > 1:
        out_BHPD = scaled_dot_product_attention(query, key, value, attention_mask, scale=scale, enable_gqa=True)
        return out_BHPD.transpose(1, 2), None
    stacked = query.reshape(rows, key.shape[1], heads // key.shape[1], -1)
    # Written out: for one position torch's CPU kernel takes several times as long as two matrix products.
    scores = (stacked @ key.transpose(-1, -2)) * (scale or query.shape[-1] ** -0.5)
    return (scores.masked_fill(~attention_mask, float("-inf")).softmax(-1) @ value).view(rows, 1, heads, -1), None


AttentionInterface.register(ATTENTION, grouped_attention)


class _Layer(DynamicLayer):
    """One layer's keys and values in memory that is allocated once, seen up to the last column written."""

    def __init__(self, prefilled: DynamicLayer, samples: int, capacity: int) -> None:
        super().__init__()
        self.is_initialized = True
        self._keys, self._values = (_room(x, samples, capacity) for x in (prefilled.keys, prefilled.values))
        self._columns = prefilled.keys.shape[2]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self._keys[:, :, self._columns] = key_states[:, :, 0]
        self._values[:, :, self._columns] = value_states[:, :, 0]
        self._columns += 1
        return self._keys[:, :, : self._columns], self._values[:, :, : self._columns]

    def get_seq_length(self) -> int:
        return self._columns


def _room(states_GKPD: Tensor, samples: int, capacity: int) -> Tensor:
    groups, heads, columns, size = states_GKPD.shape
    room_BKCD = states_GKPD.new_empty(groups * samples, heads, capacity, size)
    room_BKCD[:, :, :columns] = states_GKPD.repeat_interleave(samples, 0)
    return room_BKCD


@torch.inference_mode()
def generate(model: PreTrainedModel, prompts: list, samples: int, new_tokens: int) -> tuple[Tensor, Tensor]:
    """(tokens_BT, logprobs_BT): `samples` responses of exactly `new_tokens` tokens per prompt, at temperature 1."""
    prompts_GP, real_GP = _padded(prompts)
    cache = DynamicCache(config=model.config)
    logits_BV = _prefill(model, prompts_GP, real_GP, cache).repeat_interleave(samples, 0)
    columns = prompts_GP.shape[1]
    cache = Cache(layers=[_Layer(layer, samples, columns + new_tokens) for layer in cache.layers])
    lengths_B = real_GP.sum(1).repeat_interleave(samples)
    seen_BC = torch.ones(len(lengths_B), columns + new_tokens, dtype=torch.bool)
    seen_BC[:, :columns] = real_GP.repeat_interleave(samples, 0)
    tokens, logprobs = [], []
    for t in range(new_tokens):
        logprobs_BV = logits_BV.log_softmax(-1)
        tokens_B1 = torch.multinomial(logprobs_BV.exp(), 1)
        tokens.append(tokens_B1)
        logprobs.append(logprobs_BV.gather(1, tokens_B1))
        if t < new_tokens - 1:
            logits_BV = model(
                input_ids=tokens_B1,
                attention_mask=seen_BC[:, None, None, : columns + t + 1],
                position_ids=(lengths_B + t)[:, None],
                past_key_values=cache,
            ).logits[:, -1]
    return torch.cat(tokens, 1), torch.cat(logprobs, 1)


def _padded(prompts: list) -> tuple[Tensor, Tensor]:
    """Token ids and whether they are real, padded on the left."""
    longest = max(map(len, prompts))
    ids_GP = torch.zeros(len(prompts), longest, dtype=torch.long)
    real_GP = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for g, tokens in enumerate(prompts):
        ids_GP[g, longest - len(tokens) :] = torch.from_numpy(tokens)
        real_GP[g, longest - len(tokens) :] = True
    return ids_GP, real_GP


def _prefill(model: PreTrainedModel, ids_GP: Tensor, real_GP: Tensor, cache: DynamicCache) -> Tensor:
    """Logits of the first new token, [G, V]."""
    columns = ids_GP.shape[1]
    before_PP = torch.ones(columns, columns, dtype=torch.bool).tril()
    itself_PP = torch.eye(columns, dtype=torch.bool)  # or a padding row would see nothing at all
    return model(
        input_ids=ids_GP,
        attention_mask=((before_PP & real_GP[:, None, :]) | itself_PP)[:, None],
        position_ids=(real_GP.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        logits_to_keep=1,
    ).logits[:, -1]
