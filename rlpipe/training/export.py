"""Full weights out of a training engine, whatever its ZeRO stage."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rlpipe.models.folders import appearing, copy_tokenizer
from rlpipe.models.quantized import described_as_plain, unpacked

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GATHERED_BYTES = 256 << 20
"""Parameters that ZeRO-3 puts together at once."""


def full_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter by its Hugging Face name, tied ones once.

    Collective under ZeRO-3: every rank must iterate to the end. A tensor is only valid until the next one is asked for.
    """
    yield from gathered(list(model.named_parameters()))


def gathered(named: list[tuple[str, torch.nn.Parameter]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The whole tensors of some parameters of a model, 4-bit ones dequantised; as `full_parameters`."""
    if not any(is_split(parameter) for _, parameter in named):
        yield from ((name, unpacked(parameter)) for name, parameter in named)
        return
    for part in _portions(named):
        with whole([parameter for _, parameter in part]):
            yield from ((name, unpacked(parameter)) for name, parameter in part)


def is_split(parameter: torch.nn.Parameter) -> bool:
    """Whether ZeRO-3 has spread it over the ranks."""
    return hasattr(parameter, "ds_id")


def whole(parameters: list[torch.nn.Parameter]) -> AbstractContextManager[None]:
    """The parameters put together for the length of the block. Collective under ZeRO-3."""
    if not any(map(is_split, parameters)):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def save_pretrained(model: "PreTrainedModel", source: str, directory: Path, writer: bool) -> None:
    """Write a plain Hugging Face folder: safetensors, config, and the tokenizer files of the folder `source`.

    Collective; only the rank with `writer` writes. The folder appears under its name when it is complete.
    """
    save_weights(model, full_parameters(model), source, directory, writer)


def save_weights(
    model: "PreTrainedModel", weights: Iterator[tuple[str, torch.Tensor]], source: str, directory: Path, writer: bool
) -> None:
    """As `save_pretrained`, with other `weights` than the model's own; every rank iterates over them."""
    if not writer:
        for _ in weights:
            pass
        return
    # Copies: under ZeRO-3 a tensor is gone with the next one, and safetensors wants them all.
    state = {name: tensor.to("cpu", copy=True) for name, tensor in weights}
    state |= _persistent_buffers(model)
    with appearing(directory) as partial, described_as_plain(model):
        model.save_pretrained(partial, state_dict=state)
        copy_tokenizer(source, partial)


def _portions(named: list[tuple[str, torch.nn.Parameter]]) -> Iterator[list[tuple[str, torch.nn.Parameter]]]:
    """Consecutive parameters of about `_GATHERED_BYTES` together."""
    part, size = [], 0
    for name, parameter in named:
        part.append((name, parameter))
        size += parameter.ds_numel * parameter.element_size()
        if size >= _GATHERED_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _persistent_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    names = model.state_dict(keep_vars=True).keys()
    return {name: buffer.to("cpu", copy=True) for name, buffer in model.named_buffers() if name in names}
