"""Which language model a task starts from."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from rlpipe.recipe.base import FilePath, PathOrHubId, Strict
from rlpipe.recipe.quantization import Quantization

Dtype = Literal["auto", "float32", "bfloat16"]
Attention = Annotated[
    Literal["auto", "sdpa", "flash_attention_2", "eager"],
    Field(
        description="Attention of training roles and offline tasks, in transformers' names; vLLM chooses its own. auto "
        "is flash_attention_2 in half precision on a GPU where the package flash-attn is installed, and torch's own "
        "fused one (sdpa) elsewhere."
    ),
]


def check_attention(attention: Attention, dtype: Dtype) -> None:
    """Raises ValueError for an attention that does not compute in `dtype`."""
    if attention == "flash_attention_2" and dtype == "float32":
        raise ValueError(
            "attn_implementation=flash_attention_2 computes in half precision, and dtype=float32 is not; set dtype to "
            "bfloat16, or attn_implementation to sdpa"
        )


class RopeScaling(Strict):
    """A longer context by rotary positions that are spread differently; train on long records afterwards."""

    rope_type: Literal["linear", "yarn"]
    """As transformers names it: linear divides positions (Chen et al. 2023, arXiv 2306.15595), yarn divides those of
    slow rotations (Peng et al. 2023, arXiv 2309.00071)."""
    factor: Annotated[float, Field(gt=1)]
    """How many times as long the context becomes."""


class PretrainedModel(Strict):
    """A model folder or hub id, loaded with `from_pretrained`."""

    path: PathOrHubId
    """Local folder in Hugging Face format, hub id, or `${stages.NAME.model}`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model, where transformers has none for it, in every process that loads
    it. That code can do whatever you can: read it first, and pin `revision`. Without it such a model is refused."""
    chat_template: FilePath | None = None
    """File with a Jinja chat template that replaces the tokenizer's own."""
    rope_scaling: RopeScaling | None = None
    """Stretch the model's context: its configuration's rope_parameters and max_position_embeddings are changed."""
    quantization: Quantization | None = None
    """Keep its weights in 4 bits, under an adapter (QLoRA)."""
    dtype: Dtype = "auto"
    """Computation type of training and rollout alike; auto is float32 on CPU and bfloat16 on GPU."""
    attn_implementation: Attention = "auto"

    @model_validator(mode="after")
    def _attention_fits(self) -> "PretrainedModel":
        check_attention(self.attn_implementation, self.dtype)
        return self


class ScratchModel(Strict):
    """A small Qwen2 causal LM with a character-level tokenizer, built from a seed: the embedded default."""

    scratch: Literal["qwen2"]
    """Architecture family."""
    hidden_size: PositiveInt = 256
    """Width of the residual stream."""
    layers: PositiveInt = 2
    """Number of decoder layers."""
    heads: PositiveInt = 8
    """Attention heads; hidden_size / heads must be 32 or 64 for vLLM on CPU."""
    kv_heads: PositiveInt = 4
    """Key/value heads (grouped-query attention)."""
    intermediate_size: PositiveInt = 1536
    """Width of the feed-forward layers."""
    initializer_range: PositiveFloat = 0.05
    """Standard deviation of the initial weights. At 0.02, usual for wide models, so narrow a one learns far slower."""
    max_position_embeddings: PositiveInt = 256
    """Longest sequence in tokens."""
    tie_word_embeddings: bool = True
    """Share the input embedding with the output head, as the small Qwen2.5 models do."""
    dtype: Dtype = "auto"
    """Computation type of training and rollout alike; auto is float32 on CPU and bfloat16 on GPU."""
    attn_implementation: Attention = "auto"

    @model_validator(mode="after")
    def _attention_fits(self) -> "ScratchModel":
        check_attention(self.attn_implementation, self.dtype)
        return self

    @model_validator(mode="after")
    def _divides(self) -> "ScratchModel":
        for whole, part in (("hidden_size", "heads"), ("heads", "kv_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"{whole}={getattr(self, whole)} does not divide into {part}={getattr(self, part)}")
        return self


def model_kind(value: object) -> str:
    """The tag of a model in its union."""
    if isinstance(value, ScratchModel) or (isinstance(value, dict) and "scratch" in value):
        return "scratch"
    return "pretrained"


def allow_text(schema: dict) -> None:
    """A path stands for a section with nothing else, in the schema of a union of models."""
    schema["oneOf"].append({"type": "string", "format": "path-or-hub-id"})  # what expand takes


def expand(value: object) -> object:
    """`model: PATH` is short for `model: {path: PATH}`."""
    return {"path": value} if isinstance(value, str) else value


Model = Annotated[
    Annotated[PretrainedModel, Tag("pretrained")] | Annotated[ScratchModel, Tag("scratch")],
    Discriminator(model_kind),
    BeforeValidator(expand),
    Field(
        description="a path or hub id (`model: PATH` or `model: {path: PATH}`), or `{scratch: qwen2}`",
        json_schema_extra=allow_text,
    ),
]


def quantization_of(model: PretrainedModel | ScratchModel) -> Quantization | None:
    """How its weights are quantised; a model from scratch never is."""
    return model.quantization if isinstance(model, PretrainedModel) else None


def whole(model: PretrainedModel | ScratchModel) -> PretrainedModel | ScratchModel:
    """The same model with its weights as they are, for a role that trains all of them."""
    return model.model_copy(update={"quantization": None}) if isinstance(model, PretrainedModel) else model
