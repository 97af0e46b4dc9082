"""Adapters on a causal language model. PEFT makes them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlpipe.models.load import ModelError
from rlpipe.models.quiet import quiet_libraries
from rlpipe.recipe.adapter import Adapter

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

NAME = "default"
"""PEFT's name of the only adapter."""


def adapt(model: "PreTrainedModel", adapter: Adapter, seed: int) -> "PeftModel":
    """The model with a new adapter that changes nothing yet; only the adapter requires gradients.

    The seed alone decides the adapter's weights, so that all ranks begin with the same. Raises `ModelError` if no
    module has the recipe's names.
    """
    quiet_libraries()
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", **adapter.model_dump(exclude={"kind"}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(f"adapter.target_modules: {error}") from error


@contextmanager
def switched_off(model: "PeftModel") -> Iterator[None]:
    """The base model answers within the block.

    PEFT's own `disable_adapter` also toggles `requires_grad`, on which DeepSpeed's bookkeeping rests.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

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
