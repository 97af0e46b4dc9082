"""What is trained in place of a model's own weights. Keys are PEFT's."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rlpipe.recipe.base import Strict


class LoraAdapter(Strict):
    """Low-rank matrices beside frozen weights (Hu et al. 2021, arXiv 2106.09685): W + scale * B A."""

    kind: Literal["lora"]
    """Low-rank adaptation."""
    r: PositiveInt = 16
    """Rank of the matrices."""
    lora_alpha: PositiveFloat = 32
    """Numerator of the scale, which is lora_alpha / r."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r), so that high ranks learn as fast (Kalajdzievski 2023, arXiv 2312.03732)."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs dropped in training; 0 in RL."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Names of the modules that get one, such as `q_proj`; `all-linear` is every linear layer but the output head."""


Adapter = LoraAdapter
"""One kind so far. A second one makes this a union told apart by `kind`, in one place for all tasks."""
