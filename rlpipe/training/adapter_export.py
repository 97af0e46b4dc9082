"""Weights out of a training engine whose model has an adapter: the adapter alone, or merged into the base."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlpipe.models import adapters
from rlpipe.models.folders import appearing
from rlpipe.training.export import gathered, whole

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer


def adapter_state(model: "PeftModel") -> dict[str, torch.Tensor]:
    """The adapter's tensors on the CPU, under the names of PEFT's files. Collective under ZeRO-3."""
    from peft import get_peft_model_state_dict

    mine = [(name, parameter) for name, parameter in model.named_parameters() if model.base_model.prefix in name]
    state = {name: tensor.to("cpu", copy=True) for name, tensor in gathered(mine)}
    return get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)


def merged_parameters(model: "PeftModel") -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter of the base model by its Hugging Face name, with what the adapter adds to it: W + scale * B A,
    summed in float32 and rounded once. Collective and lazy as `export.full_parameters`."""
    layers = _adapted(model)
    for name, parameter in model.get_base_model().named_parameters():
        if model.base_model.prefix in name:
            continue
        layer = layers.get(id(parameter))
        with whole([parameter, *(_own(layer, model.base_model.prefix) if layer else ())]):
            yield name.replace(".base_layer.", "."), _merged(parameter.detach(), layer)


def save_adapter(model: "PeftModel", directory: Path, writer: bool) -> None:
    """A folder that PEFT loads onto the base model. Collective; only the rank with `writer` writes."""
    state = adapter_state(model)
    if writer:
        with appearing(directory) as partial:
            adapters.write(state, adapters.config_of(model), partial)


def _adapted(model: "PeftModel") -> "dict[int, LoraLayer]":
    """The adapted layers, by the id of the weight that each one adds to."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return {id(layer.get_base_layer().weight): layer for layer in layers}


def _own(layer: "LoraLayer", prefix: str) -> list[torch.nn.Parameter]:
    return [parameter for name, parameter in layer.named_parameters() if prefix in name]


def _merged(weight: torch.Tensor, layer: "LoraLayer | None") -> torch.Tensor:
    if layer is None:
        return weight
    with torch.no_grad():
        return (weight.float() + layer.get_delta_weight(adapters.NAME).float()).to(weight.dtype)
