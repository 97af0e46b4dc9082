"""Which implementation of attention a model computes with in training and offline tasks."""

from typing import TYPE_CHECKING

from rlpipe.recipe.model import Attention

if TYPE_CHECKING:
    import torch


class AttentionUnavailable(ValueError):
    """The recipe names an implementation that this process does not have, or cannot use."""


def resolve_attention(wanted: Attention, dtype: "torch.dtype") -> str:
    """In transformers' names. `auto` is FlashAttention 2 (Dao 2023, arXiv 2307.08691) for half precision on a GPU where
    the package flash-attn is, and torch's own fused attention elsewhere. Raises `AttentionUnavailable`."""
    lacks = _flash_lacks(dtype)
    if wanted == "auto":
        return "sdpa" if lacks else "flash_attention_2"
    if wanted == "flash_attention_2" and lacks:
        raise AttentionUnavailable(
            f"model.attn_implementation=flash_attention_2: {lacks}. Set it to sdpa, or leave it out, which takes "
            "FlashAttention where it can be had."
        )
    return wanted


def _flash_lacks(dtype: "torch.dtype") -> str:
    """Why FlashAttention 2 cannot be used here; empty where it can."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    if dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in half precision, and the model in {str(dtype).removeprefix('torch.')}"
    if not torch.cuda.is_available():
        return "it needs a GPU, and torch finds none"
    if not is_flash_attn_2_available():
        return "the package flash-attn is not installed"
    return ""
