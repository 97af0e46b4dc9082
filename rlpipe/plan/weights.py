"""How many parameters of a model a role trains, and how its weights lie in memory."""

import math
from dataclasses import dataclass

from rlpipe.plan.adapter_size import over, trained_parameters
from rlpipe.plan.architecture import Architecture
from rlpipe.plan.states import KEPT_WHOLE
from rlpipe.recipe.adapter import AnyAdapter, BitFitAdapter, LoraFaAdapter, VeraAdapter
from rlpipe.recipe.adapter_base import LoraMatrices
from rlpipe.recipe.quantization import Quantization

_BLOCK, _BLOCKS = 64, 256
"""bitsandbytes scales 64 weights together, and where scales are 4-bit packed, too, 256 of them."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of a model as a role holds it."""

    trained: int
    frozen: int
    """Other ones in the type that computes."""
    packed: int
    """Bytes of 4-bit weights with their scales."""
    small: int
    """Parameters in tensors that ZeRO-3 keeps whole."""
    largest: int
    """Parameters of the largest trained tensor."""
    rank: int
    """r of the adapter's matrices; 0 without."""
    unpacked: int
    """Parameters of the largest 4-bit layer, which is made whole where it computes."""

    @property
    def everything(self) -> int:
        """Parameters that are not in 4 bits."""
        return self.trained + self.frozen


def weights(
    shapes: Architecture,
    adapter: AnyAdapter | None,
    quantization: Quantization | None,
    scores: bool = False,
) -> Weights:
    """Of a causal model; with `scores` of a classifier. Raises `Unpredictable` as `trained_parameters` does."""
    trained = trained_parameters(shapes, adapter, scores)
    if adapter is None:
        tensors = list(shapes.tensors(scores))
        return Weights(trained, 0, 0, sum(n for n in tensors if n < KEPT_WHOLE), max(tensors), 0, 0)
    learns_there = trained - (shapes.hidden if scores else 0) if isinstance(adapter, BitFitAdapter) else 0
    learns_there += _biases_beside(shapes, adapter)
    frozen = shapes.size(scores) - learns_there - (shapes.hidden if scores else 0) + _drawn(shapes, adapter)
    linears = [linear.inputs * linear.outputs for _, linear in shapes.linears()]
    packed = packed_bytes(linears, quantization) if quantization else 0
    frozen -= sum(linears) if quantization else 0
    small = sum(n for n in shapes.tensors(scores) if n < KEPT_WHOLE) + trained
    rank = getattr(adapter, "r", 0)
    return Weights(trained, frozen, packed, small, trained, rank, max(linears) if quantization else 0)


def _biases_beside(shapes: Architecture, adapter: AnyAdapter) -> int:
    """Of the model's own biases, those that learn with low-rank matrices."""
    which = adapter.bias if isinstance(adapter, LoraMatrices) else "none"
    if which == "none":
        return 0
    targets = "all-linear" if which == "all" else adapter.target_modules
    return over(shapes, targets, lambda name, one: one.bias * one.outputs)


def _drawn(shapes: Architecture, adapter: AnyAdapter) -> int:
    """Of the adapter's own matrices those that stay as they were drawn."""
    if isinstance(adapter, LoraFaAdapter):
        return over(shapes, adapter.target_modules, lambda name, one: adapter.r * one.inputs)
    if isinstance(adapter, VeraAdapter):
        linears = [linear for _, linear in shapes.linears()]
        return adapter.r * (max(one.inputs for one in linears) + max(one.outputs for one in linears))
    return 0


def packed_bytes(tensors: list[int], quantization: Quantization) -> int:
    """Of weights in 4 bits, with a scale for each block of 64: in float32, or in 8 bits with a scale of its own for
    each 256."""
    return sum(_packed(count, quantization.bnb_4bit_use_double_quant) for count in tensors)


def _packed(count: int, twice: bool) -> int:
    blocks = math.ceil(count / _BLOCK)
    scales = blocks + 4 * math.ceil(blocks / _BLOCKS) if twice else 4 * blocks
    return math.ceil(count / 2) + scales
