"""Folders as Hugging Face libraries read them: what is in one, and writing one so that it is never seen half done."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOKENIZER_FILES = (
    "tokenizer*", "vocab*", "merges*", "special_tokens_map*", "added_tokens*", "chat_template*", "*.model", "*.jinja",
    "generation_config.json", "preprocessor_config.json", "*.py",
)  # fmt: skip
WEIGHT_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
PICKLED_FILES = ("pytorch_model*.bin", "adapter_model.bin", "*.pt", "*.pth", "*.ckpt")
"""Weights in the formats of `torch.save`: pickles, which may run code when they are opened."""


def is_adapter(folder: Path) -> bool:
    """Whether PEFT loads it."""
    return (folder / "adapter_config.json").is_file()


def is_model(folder: Path) -> bool:
    """Whether transformers loads it."""
    return (folder / "config.json").is_file()


def pickled_weights(folder: Path) -> list[str]:
    """The names of its weight files, if it has them as pickles alone."""
    if any(folder.glob("*.safetensors")):
        return []
    return sorted(file.name for pattern in PICKLED_FILES for file in folder.glob(pattern))


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What the `adapter_config.json` of an adapter says."""
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))


@contextmanager
def appearing(directory: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `directory` when the block ends well."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    _put_in_place(partial, directory)


def copy_tokenizer(source: str, directory: Path) -> None:
    """The tokenizer's own files, unchanged, so that none of its code is run; those of a hub id are downloaded."""
    if not Path(source).is_dir():
        from huggingface_hub import snapshot_download

        source = snapshot_download(source, allow_patterns=list(TOKENIZER_FILES))
    copy_files(Path(source), TOKENIZER_FILES, directory)


def copy_files(source: Path, patterns: Iterable[str], directory: Path) -> None:
    """The files of a folder that match one of the patterns; what they link to, where they are links."""
    directory.mkdir(parents=True, exist_ok=True)
    for pattern in patterns:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copy2(file, directory / file.name)


def _put_in_place(finished: Path, directory: Path) -> None:
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        os.rename(directory, old)
    os.rename(finished, directory)
    shutil.rmtree(old, ignore_errors=True)
