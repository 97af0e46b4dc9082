"""Frozen weights in 4 bits, under an adapter that is trained. Keys are those of transformers and bitsandbytes."""

from typing import Literal

from rlpipe.recipe.base import Strict


class Quantization(Strict):
    """4-bit weights of bitsandbytes, for QLoRA (Dettmers et al. 2023, arXiv 2305.14314): of every linear layer but the
    output head; embeddings, norms and biases stay as they are."""

    load_in_4bit: Literal[True] = True
    """Take the model's weights to 4 bits while it is loaded."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """The sixteen values: quantiles of a normal distribution (nf4), or floating-point numbers (fp4)."""
    bnb_4bit_use_double_quant: bool = True
    """Quantise the scale of each block of 64 weights, too: 4.13 bits a weight in place of 4.5."""
