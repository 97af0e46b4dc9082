"""4-bit weights of bitsandbytes: loading them, and plain weights out of them.

A packed parameter is a column of bytes, two weights in each, with the scales of its blocks in `quant_state`. Wherever
weights leave the trainer, they leave dequantised: those are the weights that it computes with.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from rlpipe.recipe.quantization import Quantization

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import PreTrainedModel


def options(quantization: Quantization | None, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is given for weights that are to compute in `dtype`.

    They are quantised on the CPU, so that every process makes the same of them, whatever its device; but for ZeRO-3,
    under which transformers chooses the device.
    """
    if quantization is None:
        return {}
    from transformers import BitsAndBytesConfig
    from transformers.integrations import is_deepspeed_zero3_enabled

    config = BitsAndBytesConfig(bnb_4bit_compute_dtype=dtype, **quantization.model_dump())
    return {"quantization_config": config} | ({} if is_deepspeed_zero3_enabled() else {"device_map": {"": "cpu"}})


def keep_trainable(model: torch.nn.Module) -> None:
    """On a CPU with AVX512-BF16, a layer of bitsandbytes in evaluation mode repacks its weights for good, into a form
    that computes in bfloat16 and passes no gradient on."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def backbone_of(model: "PreTrainedModel") -> "PreTrainedModel":
    """Without its output head, and telling PEFT, which asks, what its layers are made of, as the whole model does."""
    backbone = model.base_model
    if getattr(model, "is_loaded_in_4bit", False):
        backbone.is_loaded_in_4bit = True
    return backbone


def is_packed(parameter: torch.Tensor) -> bool:
    """Whether it holds 4-bit weights."""
    return getattr(parameter, "quant_state", None) is not None


def unpacked(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The weights in the type that they were loaded as; of a plain parameter its own."""
    if not is_packed(parameter):
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(parameter.data, parameter.quant_state)


@contextmanager
def described_as_plain(model: "PreTrainedModel") -> Iterator[None]:
    """Within the block the model says nothing of its quantisation, so that it is saved as the plain one that its
    weights are handed over as."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        yield
        return
    settings = model.config.quantization_config
    model.hf_quantizer = None
    del model.config.quantization_config
    try:
        yield
    finally:
        model.hf_quantizer, model.config.quantization_config = quantizer, settings


@contextmanager
def unpacked_layer(layer: "BaseTunerLayer") -> Iterator[torch.nn.Module]:
    """The base of an adapted layer, within the block with plain weights that PEFT can merge into.

    PEFT's own merging into a 4-bit layer quantises the sum again, which another base than the one that was trained on
    would come out of.
    """
    base = layer.get_base_layer()
    if not is_packed(base.weight):
        yield base
        return
    kind, packed = type(layer), base.weight
    backend = getattr(layer, "quantization_backend", None)
    layer.__class__ = _on_plain_weights().get(kind, kind)
    layer.quantization_backend = None
    layer.fan_in_fan_out = False  # 4-bit weights are [outputs, inputs], which PEFT's IA3 does not say of its layers
    base.weight = torch.nn.Parameter(unpacked(packed), requires_grad=False)
    try:
        yield base
    finally:
        base.weight = packed
        layer.__class__, layer.quantization_backend = kind, backend


def _on_plain_weights() -> dict[type, type]:
    """PEFT's kinds of layers on 4-bit weights, and what they are on plain ones."""
    from peft.tuners import adalora, ia3, lora

    return {
        lora.Linear4bit: lora.Linear,
        ia3.Linear4bit: ia3.Linear,
        adalora.SVDLinear4bit: adalora.SVDLinear,
    }
