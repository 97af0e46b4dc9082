"""What is known of a recipe's models without loading or downloading any."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlpipe.plan.architecture import Architecture, Unpredictable, architecture
from rlpipe.plan.known_models import known
from rlpipe.recipe.model import PretrainedModel, ScratchModel

SCRATCH_VOCABULARY = 262
"""Of a model from scratch: 256 bytes and the marks of the chat template (`rlpipe.models.scratch`)."""


class NoSuchModel(ValueError):
    """A model that is not on this machine, and of no known name; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a plan knows of a model."""

    name: str
    shapes: Architecture
    source: str
    """Where the shapes come from, for people."""
    file_bytes: int | None = None
    """Size of its weights on disk, as the safetensors index or the file says; None where there is neither."""

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""
        return self.shapes.context


def facts(spec: PretrainedModel | ScratchModel) -> ModelFacts:
    """Of a model's folder, of the hub's cache, or of a published model by its name; of a model from scratch its recipe.

    Raises `NoSuchModel`, or `Unpredictable` for an architecture that is not known here.
    """
    if isinstance(spec, ScratchModel):
        return ModelFacts("from scratch", architecture(_described(spec)), "the recipe")
    folder = _folder(spec.path, spec.revision)
    if folder is None:
        listed = known(spec.path)
        if listed is None:
            raise NoSuchModel(_unknown(spec.path))
        return _stretched(ModelFacts(spec.path, architecture(listed), "its published shapes"), spec)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shapes = _of_config({**config, **config.get("text_config", {})}, spec.path)
    return _stretched(ModelFacts(spec.path, shapes, str(folder / "config.json"), _weights(folder)), spec)


def _of_config(config: Mapping[str, Any], name: str) -> Architecture:
    try:
        return architecture(config)
    except KeyError as missing:
        raise Unpredictable(f"config.json of {name} has no {missing}") from None


def _stretched(found: ModelFacts, spec: PretrainedModel) -> ModelFacts:
    if spec.rope_scaling is None:
        return found
    longer = int(found.context * spec.rope_scaling.factor)
    return replace(found, shapes=replace(found.shapes, context=longer))


def _described(spec: ScratchModel) -> dict[str, Any]:
    return {
        "model_type": spec.scratch,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "intermediate_size": spec.intermediate_size,
        "vocab_size": SCRATCH_VOCABULARY,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "max_position_embeddings": spec.max_position_embeddings,
    }


def _folder(path: str, revision: str | None) -> Path | None:
    """The folder with the model's config.json: given, or of the hub's cache."""
    local = Path(path).expanduser()
    if (local / "config.json").is_file():
        return local
    cached = _hub_cache() / f"models--{path.replace('/', '--')}"
    name = cached / "refs" / (revision or "main")
    commit = name.read_text().strip() if name.is_file() else revision or ""
    snapshot = cached / "snapshots" / commit
    return snapshot if commit and (snapshot / "config.json").is_file() else None


def _hub_cache() -> Path:
    """As huggingface_hub has it."""
    if given := os.environ.get("HF_HUB_CACHE"):
        return Path(given).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "hub"


def _weights(folder: Path) -> int | None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        size = json.loads(index.read_text(encoding="utf-8")).get("metadata", {}).get("total_size")
        return int(size) if size else None
    single = folder / "model.safetensors"
    return _tensor_bytes(single) if single.is_file() else None


def _tensor_bytes(file: Path) -> int:
    """Of a safetensors file, whose header says of each tensor where it begins and ends."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    spans = [one["data_offsets"] for name, one in header.items() if name != "__metadata__"]
    return sum(end - start for start, end in spans)


def _unknown(path: str) -> str:
    made = path.startswith("runs/") or "/runs/" in path
    if made or Path(path).expanduser().is_absolute() or path.startswith("."):
        first = "run the recipe that makes it first, or " if made else ""
        return f"there is no config.json in {path}; {first}name another model of its size"
    return (
        f"{path} is neither in the hub's cache nor among the published models whose shapes are known here, and a plan "
        f"downloads nothing: `hf download {path} config.json` (a small file), or name another model of its size"
    )
