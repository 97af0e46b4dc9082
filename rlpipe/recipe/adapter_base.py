"""What kinds of adapters have in common. Keys are PEFT's."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rlpipe.recipe.base import Strict

Targets = Literal["all-linear"] | Annotated[list[str], Field(min_length=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class LoraMatrices(Strict):
    """What the kinds made of two low-rank matrices have in common."""

    mergeable: ClassVar[bool] = True
    kind: str
    """Which of them."""
    r: PositiveInt = 16
    """Rank of the matrices."""
    lora_alpha: PositiveFloat = 32
    """Numerator of the scale, which is lora_alpha / r."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r), so that high ranks learn as fast (Kalajdzievski 2023, arXiv 2312.03732)."""
    lora_dropout: Dropout = 0.0
    """Share of the adapter's inputs dropped in training; 0 in RL."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which of the model's own biases are trained with it: all, or those of the modules that get one. With the adapter
    off the model is another one then than before."""
    target_modules: Targets = "all-linear"
    """Names of the modules that get one, such as `q_proj`; `all-linear` is every linear layer but the output head."""
