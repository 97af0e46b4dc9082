"""Whether models can be merged: the same architecture and vocabulary. Errors name the first difference."""

from pathlib import Path
from typing import Any

from rlpipe.models.load import ModelError, load_config, load_tokenizer
from rlpipe.recipe.model import PretrainedModel

_MAY_DIFFER = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "initializer_range",
    "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "max_window_layers",
}  # fmt: skip
"""Keys of a config.json that do not decide what the weights compute."""


def check_architectures(first: Path, second: Path) -> None:
    """Raises `ModelError` unless the two configurations compute the same from the same weights."""
    ours, theirs = (_architecture(folder) for folder in (first, second))
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise ModelError(
                f"the architectures differ: {key} is {ours.get(key)!r} in {first}/config.json and {theirs.get(key)!r} "
                f"in {second}/config.json; only models of one architecture can be merged"
            )


def check_vocabularies(first: Path, second: Path) -> None:
    """Raises `ModelError` unless every token has the same id in both tokenizers."""
    ours, theirs = (_vocabulary(folder) for folder in (first, second))
    odd = sorted(ours.items() ^ theirs.items(), key=lambda pair: (pair[1], pair[0]))
    if odd:
        token = odd[0][0]
        raise ModelError(
            f"the vocabularies differ: {token!r} is {_told(ours.get(token))} in {first} and {_told(theirs.get(token))} "
            f"in {second}; the same row of the embedding would stand for different tokens"
        )


def _architecture(folder: Path) -> dict[str, Any]:
    config = load_config(PretrainedModel(path=str(folder)), str(folder))
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{folder} is quantised; merge full-precision weights, and quantise the result")
    return {key: value for key, value in config.to_dict().items() if key not in _MAY_DIFFER}


def _vocabulary(folder: Path) -> dict[str, int]:
    return load_tokenizer(PretrainedModel(path=str(folder)), str(folder)).get_vocab()


def _told(token_id: int | None) -> str:
    return "not there" if token_id is None else f"token {token_id}"
