"""Which adapters can be trained on 4-bit weights."""

from rlpipe.recipe.adapter import AnyAdapter, LoraAdapter
from rlpipe.recipe.quantization import Quantization
from rlpipe.recipe.run import Publishing

ON_4_BITS = ("lora", "lora_fa", "adalora", "ia3", "vera")
"""Kinds of adapters that leave the weights beneath them alone."""


def check_quantized(quantization: Quantization | None, adapter: AnyAdapter | None, key: str = "adapter") -> None:
    """Raises ValueError for 4-bit weights without an adapter that can learn on them; the recipe has it at `key`."""
    if quantization is None:
        return
    if adapter is None:
        raise ValueError(
            f"model.quantization: 4-bit weights cannot be trained themselves; give an adapter ({key}.kind=lora), or "
            "leave the section out"
        )
    if adapter.kind not in ON_4_BITS:
        raise ValueError(
            f"model.quantization: {key}.kind={adapter.kind} cannot be trained on 4-bit weights; take one of "
            f"{', '.join(ON_4_BITS)}, or leave the section out"
        )
    if isinstance(adapter, LoraAdapter) and adapter.init_lora_weights == "pissa":
        raise ValueError(
            f"model.quantization: {key}.init_lora_weights=pissa takes weights apart, which are 4 bits each here; "
            "leave init_lora_weights out, or the section"
        )


def check_published(quantization: Quantization | None, publishing: Publishing) -> None:
    """Raises ValueError where the engines cannot have the base that `publishing` says."""
    if publishing.base == "dequantized":
        return
    if quantization is None:
        raise ValueError(
            f"publishing.base={publishing.base} says what stands in for 4-bit weights, and there are none; leave it "
            "out, or give model.quantization"
        )
    if publishing.adapter == "merged":
        raise ValueError(
            "publishing.base=original: publishing.adapter=merged sends all weights, which are the dequantised ones; "
            "leave one of the two out"
        )
