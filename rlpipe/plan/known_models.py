"""Shapes of published models, for plans on machines that do not have their files."""

from typing import Any

_COLUMNS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "vocab_size", "tie_word_embeddings", "max_position_embeddings",
)  # fmt: skip
_QWEN2, _QWEN3 = {"model_type": "qwen2"}, {"model_type": "qwen3", "head_dim": 128}
_LLAMA, _MISTRAL = {"model_type": "llama"}, {"model_type": "mistral"}
_SHAPES: dict[str, tuple[dict[str, Any], tuple[int | bool, ...]]] = {
    "Qwen/Qwen2.5-0.5B": (_QWEN2, (896, 24, 14, 2, 4864, 151936, True, 32768)),
    "Qwen/Qwen2.5-1.5B": (_QWEN2, (1536, 28, 12, 2, 8960, 151936, True, 131072)),
    "Qwen/Qwen2.5-3B": (_QWEN2, (2048, 36, 16, 2, 11008, 151936, True, 32768)),
    "Qwen/Qwen2.5-7B": (_QWEN2, (3584, 28, 28, 4, 18944, 152064, False, 131072)),
    "Qwen/Qwen2.5-14B": (_QWEN2, (5120, 48, 40, 8, 13824, 152064, False, 131072)),
    "Qwen/Qwen2.5-32B": (_QWEN2, (5120, 64, 40, 8, 27648, 152064, False, 131072)),
    "Qwen/Qwen2.5-72B": (_QWEN2, (8192, 80, 64, 8, 29568, 152064, False, 131072)),
    "Qwen/Qwen3-0.6B": (_QWEN3, (1024, 28, 16, 8, 3072, 151936, True, 40960)),
    "Qwen/Qwen3-1.7B": (_QWEN3, (2048, 28, 16, 8, 6144, 151936, True, 40960)),
    "Qwen/Qwen3-4B": (_QWEN3, (2560, 36, 32, 8, 9728, 151936, True, 40960)),
    "Qwen/Qwen3-8B": (_QWEN3, (4096, 36, 32, 8, 12288, 151936, False, 40960)),
    "Qwen/Qwen3-14B": (_QWEN3, (5120, 40, 40, 8, 17408, 151936, False, 40960)),
    "Qwen/Qwen3-32B": (_QWEN3, (5120, 64, 64, 8, 25600, 151936, False, 40960)),
    "meta-llama/Llama-3.2-1B": (_LLAMA, (2048, 16, 32, 8, 8192, 128256, True, 131072)),
    "meta-llama/Llama-3.2-3B": (_LLAMA, (3072, 28, 24, 8, 8192, 128256, True, 131072)),
    "meta-llama/Llama-3.1-8B": (_LLAMA, (4096, 32, 32, 8, 14336, 128256, False, 131072)),
    "meta-llama/Llama-3.1-70B": (_LLAMA, (8192, 80, 64, 8, 28672, 128256, False, 131072)),
    "meta-llama/Llama-2-7b-hf": (_LLAMA, (4096, 32, 32, 32, 11008, 32000, False, 4096)),
    "mistralai/Mistral-7B-v0.1": (_MISTRAL, (4096, 32, 32, 8, 14336, 32000, False, 32768)),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (_LLAMA, (2048, 22, 32, 4, 5632, 32000, False, 2048)),
}


def known(name: str) -> dict[str, Any] | None:
    """What the `config.json` of a hub id says of shapes; None for a model that is not in the list. An instruct model
    has the shapes of its base (Llama's has the same name with `-Instruct` behind it)."""
    found = _SHAPES.get(name) or _SHAPES.get(name.removesuffix("-Instruct"))
    return {**found[0], **dict(zip(_COLUMNS, found[1], strict=True))} if found else None
