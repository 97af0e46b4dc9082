"""Adapters on a causal language model. PEFT makes them."""

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from rlpipe.models import virtual_tokens
from rlpipe.models.load import ModelError
from rlpipe.models.quiet import quiet_libraries
from rlpipe.recipe.adapter import (
    AdaLoraAdapter,
    AnyAdapter,
    BottleneckAdapter,
    Ia3Adapter,
    LoraFaAdapter,
    PeftAdapter,
    VeraAdapter,
)
from rlpipe.recipe.adapter_base import LoraMatrices
from rlpipe.recipe.prompt_adapter import VirtualTokens

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

NAME = "default"
"""PEFT's name of the only adapter."""


TaskType = Literal["CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION"]
"""PEFT's name of what the model is for; the last is a backbone without an output head."""


def adapt(model: "PreTrainedModel", adapter: PeftAdapter, seed: int, task_type: TaskType = "CAUSAL_LM") -> "PeftModel":
    """The model with a new adapter; only the adapter requires gradients.

    The seed alone decides the adapter's weights, so that all ranks begin with the same. Raises `ModelError` if no
    module has the recipe's names.
    """
    quiet_libraries()
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with naming_the_targets(adapter):
            adapted = get_peft_model(model, peft_config(adapter, task_type, seed, model.name_or_path))
    freeze(adapted, adapter)
    return adapted


def peft_config(
    adapter: PeftAdapter, task_type: TaskType, seed: int, base: str, steps: int | None = None
) -> "PeftConfig":
    """The adapter as PEFT describes it. `base` is the folder or hub id of the model it goes onto; AdaLoRA wants to know
    how many optimizer `steps` there will be."""
    import peft

    if isinstance(adapter, BottleneckAdapter):
        from rlpipe.models.bottleneck import bottleneck_config

        return bottleneck_config(adapter, task_type)
    if isinstance(adapter, VirtualTokens):
        return virtual_tokens.virtual_config(adapter, base)
    settings = adapter.model_dump(exclude={"kind", "loraplus_lr_ratio", "update_ratio", "start_step"})
    match adapter:
        case AdaLoraAdapter():
            return peft.AdaLoraConfig(task_type=task_type, total_step=steps, **settings)
        case VeraAdapter():
            return peft.VeraConfig(task_type=task_type, projection_prng_key=seed, **settings)
        case Ia3Adapter():
            return peft.IA3Config(task_type=task_type, **settings)
    return peft.LoraConfig(task_type=task_type, **settings)


@contextmanager
def naming_the_targets(adapter: AnyAdapter | None) -> Iterator[None]:
    """What PEFT says of modules that are not there, as a `ModelError`."""
    try:
        yield
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        key = "placement" if isinstance(adapter, BottleneckAdapter) else "target_modules"
        raise ModelError(f"adapter.{key}: {error}") from error


def freeze(model: "PeftModel", adapter: PeftAdapter) -> None:
    """What of an adapter does not learn. Raises `ModelError` if biases are to learn and there are none, or directions
    and the model has weights without one."""
    check_directions(model)
    biases = (p for name, p in model.named_parameters() if name.endswith(".bias"))
    if isinstance(adapter, LoraMatrices) and adapter.bias != "none" and not any(p.requires_grad for p in biases):
        raise ModelError(f"adapter.bias={adapter.bias}: there are no biases to train; leave it out.")
    if isinstance(adapter, LoraFaAdapter):
        for name, parameter in model.named_parameters():
            parameter.requires_grad &= ".lora_A." not in name


def check_directions(model: "PeftModel") -> None:
    """Raises `ModelError` if DoRA would divide by the length of a row of weights that is 0."""
    for name, lengths in model.named_parameters():
        if ".lora_magnitude_vector." in name and (zeros := int((lengths == 0).sum())):
            layer = name.partition(".lora_magnitude_vector.")[0].removeprefix("base_model.model.")
            raise ModelError(
                f"adapter.use_dora=true: DoRA tells the length of each row of weights from its direction, and {zeros} "
                f"of {lengths.numel()} rows of {layer} are all 0 and have none (the loss would be NaN). Leave use_dora "
                "out, or name other layers in adapter.target_modules."
            )


def train_biases_alone(model: "PreTrainedModel") -> None:
    """BitFit (Ben Zaken et al. 2021, arXiv 2106.10199). A score head, which is new, learns as well. Raises `ModelError`
    if the model has no biases."""
    named = dict(model.named_parameters())
    if not any(name.endswith(".bias") for name in named):
        raise ModelError(
            f"adapter.kind=bitfit: {type(model).__name__} has no biases to train; take adapter.kind=ia3 or lora."
        )
    for name, parameter in named.items():
        parameter.requires_grad = name.endswith(".bias") or name.startswith("score.")


def same_weights(model: "PreTrainedModel") -> "PreTrainedModel":
    """Another model of the very same parameters, which are held once: modules, hooks and buffers are its own, and an
    adapter on the one is not there for the other."""
    return copy.deepcopy(model, memo={id(parameter): parameter for parameter in model.parameters()})


@contextmanager
def switched_off(model: "PeftModel") -> Iterator[None]:
    """The base model answers within the block.

    PEFT's own `disable_adapter` also toggles `requires_grad`, on which DeepSpeed's bookkeeping rests.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if virtual_tokens.are_learned_in(model):
        with virtual_tokens.left_out(model):
            yield
        return
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def config_of(model: "PeftModel") -> dict[str, Any]:
    """The adapter's `adapter_config.json`, as plain values."""
    settings = model.peft_config[NAME].to_dict() | {"inference_mode": True}
    return json.loads(json.dumps(settings, default=sorted))  # of sets, the only values that JSON does not know


def write(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], folder: Path) -> None:
    """A folder as PEFT and vLLM load it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
