"""Adapters that are virtual tokens before every sequence, whose model stays as it is. PEFT makes them.

Axis names: L layers, G key/value heads, N virtual tokens, D head dimension.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from rlpipe.recipe.prompt_adapter import PrefixTuningAdapter, PromptTuningAdapter

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def virtual_config(adapter: PromptTuningAdapter | PrefixTuningAdapter, tokenizer: str) -> "PeftConfig":
    """The adapter as PEFT describes it; `tokenizer` is the folder or hub id of the one that reads its text."""
    import peft

    settings = adapter.model_dump(exclude={"kind"})
    if isinstance(adapter, PrefixTuningAdapter):
        return peft.PrefixTuningConfig(task_type="CAUSAL_LM", **settings)
    reads = {"tokenizer_name_or_path": tokenizer} if adapter.prompt_tuning_init == "TEXT" else {}
    return peft.PromptTuningConfig(task_type="CAUSAL_LM", **settings, **reads)


def are_learned_in(model: "PeftModel") -> bool:
    """Whether the model's adapter is virtual tokens."""
    return model.active_peft_config.is_prompt_learning


def number_in(model: "PeftModel") -> int:
    """How many of them stand before every sequence."""
    return model.active_peft_config.num_virtual_tokens if are_learned_in(model) else 0


def keys_and_values(model: "PeftModel") -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the base model's layers keep of the virtual tokens: of each layer the keys and the values, both 1GND. They
    stand for the tokens wherever the base model goes on from them."""
    from peft import PeftType

    learned = model.get_prompt(batch_size=1)
    if model.active_peft_config.peft_type == PeftType.PROMPT_TUNING:
        base = model.get_base_model()
        count = learned.shape[1]
        causal_11NN = torch.ones(count, count, dtype=torch.bool, device=learned.device).tril()[None, None]
        embeddings = learned.to(base.dtype)
        learned = base(inputs_embeds=embeddings, attention_mask=causal_11NN, use_cache=True).past_key_values
    return [(layer.keys, layer.values) for layer in learned.layers]


@contextmanager
def left_out(model: "PeftModel") -> Iterator[None]:
    """The base model answers within the block."""
    model.forward = model.get_base_model().__call__
    try:
        yield
    finally:
        del model.forward


@contextmanager
def without_their_logits(model: torch.nn.Module) -> Iterator[None]:
    """Within the block, the logits that any model gives are those of the tokens it was given: prompt tuning puts the
    virtual tokens' before them, where a trainer that counts from the first one does not expect any."""

    def cut(module: torch.nn.Module, arguments: tuple, options: dict, output: object) -> object:
        tokens = arguments[0] if arguments else options["input_ids"]
        output.logits = output.logits[:, -tokens.shape[1] :]
        return output

    hook = model.register_forward_hook(cut, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
