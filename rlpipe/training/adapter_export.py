"""Weights out of a training engine whose model has an adapter: the adapter alone, or merged into the base."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlpipe.models import adapters, virtual_tokens
from rlpipe.models.folders import appearing
from rlpipe.models.quantized import unpacked_layer
from rlpipe.training.export import gathered, whole

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

_SAVED = f".modules_to_save.{adapters.NAME}."
"""In names of whole modules that PEFT trains in a copy of their own, such as a new score head."""
_REPLACED = ".original_module."
"""In names of what such a module stands in for."""
_RANK = ".ranknum."
"""In names of the divisor that AdaLoRA keeps beside each layer's tensors, as a parameter that is neither trained nor
written."""


@dataclass(frozen=True, slots=True)
class Departure:
    """What a LoRA B A on changed weights is on the weights as they were: now * B A - then * B0 A0."""

    initial: dict[str, torch.Tensor]
    """A0 and B0, as `adapter_state` gives them."""
    now: float = 1.0
    then: float = 1.0

    def joined(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the adapter, and what is taken away, as one of twice the rank."""
        if ".lora_A." in name:
            return torch.cat([tensor, self.initial[name]])
        if ".lora_B." in name:
            return torch.cat([self.now * tensor, -self.then * self.initial[name]], dim=1)
        return tensor


def adapter_state(model: "PeftModel") -> dict[str, torch.Tensor]:
    """The adapter's tensors on the CPU, under the names of PEFT's files. Collective under ZeRO-3."""
    from peft import get_peft_model_state_dict

    if virtual_tokens.are_learned_in(model):
        with whole(list(model.prompt_encoder.parameters())):
            learned = get_peft_model_state_dict(model, save_embedding_layers=False)
        return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in learned.items()}
    prefix = model.base_model.prefix
    mine = [(n, p) for n, p in model.named_parameters() if prefix in n or _SAVED in n or p.requires_grad]
    state = {name: tensor.to("cpu", copy=True) for name, tensor in gathered(mine)}
    # PEFT picks what it needs: of VeRA's matrices, which all layers share, one of their many names.
    state |= {name: buffer.to("cpu") for name, buffer in model.named_buffers(remove_duplicate=False)}
    return get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)


def merged_parameters(model: "PeftModel") -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter of the base model by its Hugging Face name, with what the adapter makes of it (for LoRA
    W + scale * B A), worked out in float32 and rounded once. Collective and lazy as `export.full_parameters`."""
    prefix, layers = model.base_model.prefix, _adapted(model)
    others = (prefix, _REPLACED, _RANK)
    named = [(n, p) for n, p in model.get_base_model().named_parameters() if not any(part in n for part in others)]
    for layer, part in groupby(named, key=lambda item: layers.get(id(item[1]))):
        for name, tensor in gathered(list(part)) if layer is None else _of_layer(layer, list(part), prefix):
            yield name.replace(".base_layer.", ".").replace(_SAVED, "."), tensor


def save_adapter(model: "PeftModel", directory: Path, writer: bool) -> None:
    """A folder that PEFT loads onto the base model. Collective; only the rank with `writer` writes."""
    state = adapter_state(model)
    if writer:
        with appearing(directory) as partial:
            adapters.write(state, adapters.config_of(model), partial)


def save_changed(model: "PeftModel", departure: Departure, directory: Path, writer: bool) -> None:
    """As `save_adapter`, where the base's weights have changed as well: a LoRA of twice the rank, to go onto the
    weights as they were."""
    state = adapter_state(model)
    if writer:
        config = adapters.config_of(model)
        doubled = {"r": 2 * config["r"], "lora_alpha": config["lora_alpha"] * (2**0.5 if config["use_rslora"] else 2)}
        with appearing(directory) as partial:
            joined = {name: departure.joined(name, tensor) for name, tensor in state.items()}
            adapters.write(joined, config | doubled | {"init_lora_weights": True}, partial)


def _adapted(model: "PeftModel") -> "dict[int, BaseTunerLayer]":
    """The adapted layers, by the ids of the parameters that each one changes."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return {id(parameter): layer for layer in layers for parameter in layer.get_base_layer().parameters()}


def _of_layer(
    layer: "BaseTunerLayer", named: list[tuple[str, torch.nn.Parameter]], prefix: str
) -> Iterator[tuple[str, torch.Tensor]]:
    own = [parameter for name, parameter in layer.named_parameters() if prefix in name or _RANK[1:] in name]
    with whole([*(parameter for _, parameter in named), *own]):
        with unpacked_layer(layer) as base:
            parameters = [base.get_parameter(name.rpartition(".")[2]) for name, _ in named]
            dtypes = [parameter.dtype for parameter in parameters]
            with _merged(layer, parameters):
                merged = [parameter.data.to(dtype) for parameter, dtype in zip(parameters, dtypes, strict=True)]
        yield from zip((name for name, _ in named), merged, strict=True)


@contextmanager
def _merged(layer: "BaseTunerLayer", parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """The layer's parameters merged by PEFT within the block, and bit for bit as they were after it. PEFT's own way
    back, unmerging, would leave rounding behind."""
    kept = [parameter.data for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.data = parameter.data.to(torch.float32, copy=True)  # PEFT adds in place
            layer.merge(adapter_names=[adapters.NAME])
        yield
    finally:
        layer.merged_adapters.clear()
        for parameter, before in zip(parameters, kept, strict=True):
            parameter.data = before
