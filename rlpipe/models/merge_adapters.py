"""Adapters into the weights of their base model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlpipe.models.combine import Combine
from rlpipe.models.folders import adapter_settings, appearing, copy_tokenizer
from rlpipe.models.load import ModelError, load_causal_lm
from rlpipe.models.trained_adapters import has_tokenizer, name_of, put_on
from rlpipe.recipe.model import PretrainedModel

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

UNMERGEABLE = {
    "PROMPT_TUNING": "adds prompts",
    "P_TUNING": "adds prompts",
    "PREFIX_TUNING": "adds prompts",
    "MULTITASK_PROMPT_TUNING": "adds prompts",
    "BOTTLENECK": "adds layers",
}
"""PEFT's kinds, and one of ours, that change no weights, and what they do."""
ONLY_ONE = ("use_dora", "lora_bias", "modules_to_save", "target_parameters", "trainable_token_indices")
"""Settings of a LoRA whose change of weights does not add up with others'."""


def merge_adapter(base: Path, adapter: Path, out: Path) -> None:
    """Writes the base model with what the adapter adds, as PEFT merges its kind; summed in float32 and rounded once to
    the base model's precision. Raises `ModelError` for kinds that cannot be merged, and for what does not fit."""
    kind = adapter_settings(adapter)["peft_type"]
    if kind in UNMERGEABLE:
        raise ModelError(
            f"{adapter} ({kind}) {UNMERGEABLE[kind]} and changes no weights, so that nothing can be merged; use it "
            f"with transformers and PEFT: `rlpipe chat {base} --adapter {adapter}`"
        )
    model, dtype = _loaded(base)
    adapted = put_on(model, base, [adapter])
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:  # what PEFT says of weights that are not finite
        raise ModelError(f"{adapter}: {error}") from error
    _write(merged.to(dtype), base, [adapter], out)


def merge_adapters(
    base: Path, adapters: Sequence[Path], weights: Sequence[float], combine: Combine, seed: int, out: Path
) -> None:
    """Writes W + combine(the adapters' changes of W), for LoRA adapters of any ranks; a layer's change is combined from
    the adapters that have one. `seed` decides what DARE drops. Precision and errors as in `merge_adapter`."""
    for adapter in adapters:
        _check_adds_up(adapter)
    model, dtype = _loaded(base)
    adapted = put_on(model, base, adapters)
    torch.manual_seed(seed)
    add_combined(adapted, weights, combine)
    _write(adapted.unload().to(dtype), base, adapters, out)


@torch.no_grad()
def add_combined(adapted: "PeftModel", weights: Sequence[float], combine: Combine) -> None:
    """Change the base weights in place."""
    from peft.tuners.lora import LoraLayer

    for layer in (module for module in adapted.modules() if isinstance(module, LoraLayer)):
        places = [n for n in range(len(weights)) if name_of(n) in {*layer.lora_A, *layer.lora_embedding_A}]
        changes = [layer.get_delta_weight(name_of(n)) for n in places]
        layer.get_base_layer().weight += combine(changes, [weights[n] for n in places])


def _check_adds_up(adapter: Path) -> None:
    settings = adapter_settings(adapter)
    if settings["peft_type"] != "LORA":
        raise ModelError(f"{adapter} is of PEFT's kind {settings['peft_type']}; only LoRA adapters can be combined")
    odd = [key for key in ONLY_ONE if settings.get(key)] + (["bias"] if settings.get("bias", "none") != "none" else [])
    if odd:
        raise ModelError(
            f"{adapter} was trained with {odd[0]}={settings[odd[0]]}: such changes do not add up with others'. Merge "
            "it alone into its base, and then average whole models"
        )


def _loaded(base: Path) -> "tuple[PreTrainedModel, torch.dtype]":
    """The base in float32, and the precision it is stored in."""
    model = load_causal_lm(PretrainedModel(path=str(base)), str(base), "auto")
    if getattr(model.config, "quantization_config", None):
        raise ModelError(
            f"{base} is quantised; merge into the full-precision weights that it was made of: --base FOLDER"
        )
    dtype = model.dtype
    return model.float(), dtype


def _write(model: "PreTrainedModel", base: Path, adapters: Sequence[Path], out: Path) -> None:
    with appearing(out) as partial:
        model.save_pretrained(partial)
        for source in (base, *filter(has_tokenizer, adapters)):  # whose chat template may be newer
            copy_tokenizer(str(source), partial)
