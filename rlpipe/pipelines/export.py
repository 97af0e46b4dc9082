"""`rlpipe export`: a run's result, a model or an adapter as a folder that can be taken elsewhere."""

from pathlib import Path

from rlpipe.models.convert import convert
from rlpipe.models.folders import (
    TOKENIZER_FILES,
    WEIGHT_FILES,
    appearing,
    copy_files,
    is_adapter,
    pickled_weights,
)
from rlpipe.models.load import ModelError
from rlpipe.models.merge_adapters import merge_adapter
from rlpipe.models.trained_adapters import recorded_base
from rlpipe.pipelines.results import find, find_adapter, find_model, refuse_existing

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md", *TOKENIZER_FILES)


def export(source: str, out: Path, base: str | None, adapter_only: bool, force: bool) -> None:
    """Write merged safetensors with configuration and tokenizer, or the adapter alone. Raises `ModelError`."""
    folder = find_adapter(source) if adapter_only else find(source)
    refuse_existing(out, [folder], force)
    if adapter_only:
        _files(folder, ADAPTER_FILES, out)
    elif is_adapter(folder):
        merge_adapter(find_model(base or recorded_base([folder])), folder, out)
    elif base is not None:
        raise ModelError(f"--base is for adapters, and {folder} is a whole model")
    else:
        _files(folder, (*WEIGHT_FILES, *TOKENIZER_FILES), out)


def _files(folder: Path, patterns: tuple[str, ...], out: Path) -> None:
    """The files as they are; weights in an older format are written as safetensors."""
    with appearing(out) as partial:
        if pickled_weights(folder):
            convert(folder, partial)
        copy_files(folder, patterns, partial)
