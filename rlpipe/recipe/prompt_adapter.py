"""Adapters that put learned, virtual tokens before every sequence and leave the model as it is. Keys are PEFT's."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from rlpipe.recipe.base import Strict


class VirtualTokens(Strict):
    """What the kinds of virtual tokens have in common."""

    kind: str
    """Which of them."""
    num_virtual_tokens: PositiveInt = 20
    """How many there are; each takes a place in the model's context."""
    served_by_vllm: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False


class PromptTuningAdapter(VirtualTokens):
    """Embeddings of tokens that stand before every sequence (Lester et al. 2021, arXiv 2104.08691)."""

    kind: Literal["prompt_tuning"]
    """Learned input embeddings."""
    prompt_tuning_init: Literal["SAMPLE_VOCAB", "TEXT", "RANDOM"] = "SAMPLE_VOCAB"
    """As what they begin: tokens drawn from the vocabulary, those of a text, or normal noise of variance 1 (PEFT's
    default), which in most models is far from every token."""
    prompt_tuning_init_text: str | None = Field(default=None, min_length=1)
    """The text of TEXT, repeated or cut to num_virtual_tokens tokens."""

    @model_validator(mode="after")
    def _text_is_used(self) -> "PromptTuningAdapter":
        if self.prompt_tuning_init == "TEXT" and self.prompt_tuning_init_text is None:
            raise ValueError("prompt_tuning_init=TEXT begins as a text; give prompt_tuning_init_text")
        if self.prompt_tuning_init != "TEXT" and self.prompt_tuning_init_text is not None:
            raise ValueError(
                f"prompt_tuning_init_text changes nothing with prompt_tuning_init={self.prompt_tuning_init}; set "
                "prompt_tuning_init=TEXT, or leave the text out"
            )
        return self


class PrefixTuningAdapter(VirtualTokens):
    """Keys and values, in every layer, of tokens that stand before every sequence (Li and Liang 2021, arXiv
    2101.00190)."""

    kind: Literal["prefix_tuning"]
    """Learned keys and values."""
    prefix_projection: bool = False
    """Learn them through a network of two layers, which is thrown away after training, as the paper does."""
    encoder_hidden_size: PositiveInt | None = None
    """Width of that network; that of one layer's keys if absent."""
    init_weights: Literal["zero"] | None = None
    """As what they begin: normal noise of variance 1 if absent, or `zero`."""

    @model_validator(mode="after")
    def _width_is_used(self) -> "PrefixTuningAdapter":
        if self.encoder_hidden_size is not None and not self.prefix_projection:
            raise ValueError(
                "encoder_hidden_size is the width of the network of prefix_projection; set prefix_projection=true, or "
                "leave encoder_hidden_size out"
            )
        return self
