"""How many parameters a recipe trains, before any model is loaded. docs/adapters.md has the formulas."""

from collections.abc import Callable, Sequence
from typing import Literal

from rlpipe.plan.architecture import Architecture, Linear, Unpredictable
from rlpipe.recipe.adapter import (
    AdaLoraAdapter,
    AnyAdapter,
    BitFitAdapter,
    BottleneckAdapter,
    DeltaLoraAdapter,
    Ia3Adapter,
    LoraAdapter,
    LoraFaAdapter,
    PrefixTuningAdapter,
    PromptTuningAdapter,
    VeraAdapter,
)
from rlpipe.recipe.bottleneck import width


def trained_parameters(model: Architecture, adapter: AnyAdapter | None, scores: bool = False) -> int:
    """The number of trained parameters; with `scores` those of a classifier, whose score head learns beside any
    adapter. Raises `Unpredictable` where `target_modules` names other modules than the decoder's linear layers."""
    if adapter is None:
        return model.size(scores)
    return _beside(model, adapter) + (model.hidden if scores else 0)


def _beside(model: Architecture, adapter: AnyAdapter) -> int:
    match adapter:
        case PromptTuningAdapter():
            return adapter.num_virtual_tokens * model.hidden
        case PrefixTuningAdapter():
            return _prefix(model, adapter)
        case BottleneckAdapter():
            return _bottlenecks(model, adapter)
        case BitFitAdapter():
            return _biases(model)
        case Ia3Adapter():
            return over(model, adapter.target_modules, lambda name, one: _scaled(name, one, adapter))
        case VeraAdapter():
            return over(model, adapter.target_modules, lambda name, one: adapter.r + one.outputs)
        case AdaLoraAdapter():
            return over(
                model, adapter.target_modules, lambda name, one: adapter.init_r * (one.inputs + one.outputs + 1)
            )
        case LoraFaAdapter():
            return _matrices(model, adapter, lambda name, one: adapter.r * one.outputs)
        case LoraAdapter():
            return _matrices(model, adapter, lambda name, one: _low_rank(one, adapter))
        case DeltaLoraAdapter():
            return over(model, adapter.target_modules, lambda name, one: adapter.r * (one.inputs + one.outputs))
    raise Unpredictable(f"adapter.kind={adapter.kind} has no formula")


def _matrices(model: Architecture, adapter: LoraAdapter | LoraFaAdapter, count: Callable[[str, Linear], int]) -> int:
    """The matrices that `count` counts, and the biases that learn with them."""
    if adapter.bias == "lora_only":
        return over(model, adapter.target_modules, lambda name, one: count(name, one) + one.bias * one.outputs)
    return over(model, adapter.target_modules, count) + (_biases(model) if adapter.bias == "all" else 0)


def _biases(model: Architecture) -> int:
    return sum(linear.outputs for _, linear in model.linears() if linear.bias)


def _low_rank(one: Linear, adapter: LoraAdapter) -> int:
    """A and B, and DoRA's lengths."""
    return adapter.r * (one.inputs + one.outputs) + (one.outputs if adapter.use_dora else 0)


def _scaled(name: str, one: Linear, adapter: Ia3Adapter) -> int:
    return one.inputs if _is_named(name, adapter.feedforward_modules) else one.outputs


def _bottlenecks(model: Architecture, adapter: BottleneckAdapter) -> int:
    """Two layers with biases, behind one or two sublayers of each layer."""
    between = width(adapter.reduction_factor, model.hidden)
    each = (model.hidden + 1) * between + (between + 1) * model.hidden
    return model.layers * each * (2 if adapter.placement == "houlsby" else 1)


def _prefix(model: Architecture, adapter: PrefixTuningAdapter) -> int:
    """Keys and values of every layer, or the embeddings and the network of two layers that make them."""
    count, made = adapter.num_virtual_tokens, 2 * model.layers * model.key_value
    if not adapter.prefix_projection:
        return count * made
    between = adapter.encoder_hidden_size or model.key_value
    return count * model.key_value + (model.key_value + 1) * between + (between + 1) * made


def over(
    model: Architecture, targets: Sequence[str] | Literal["all-linear"], count: Callable[[str, Linear], int]
) -> int:
    """What `count` says of the linear layers that `targets` names, added up. Raises `Unpredictable` for names of
    others."""
    linears = list(model.linears())
    if targets == "all-linear":
        return sum(count(name, one) for name, one in linears)
    for target in targets:
        if not any(_is_named(name, [target]) for name, _ in linears):
            raise Unpredictable(f"adapter.target_modules: {target} is none of the decoder's linear layers")
    return sum(count(name, one) for name, one in linears if _is_named(name, targets))


def _is_named(name: str, targets: Sequence[str]) -> bool:
    """As PEFT matches: the whole name, or how it ends."""
    return any(name == target or name.endswith(f".{target}") for target in targets)
