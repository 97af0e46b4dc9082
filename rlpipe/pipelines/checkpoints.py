"""Checkpoints of a stage: folders that are there whole or not at all.

checkpoints/step-NNNNNN/manifest.json   written last: every other file with its size and SHA-256

A folder is filled beside its place, flushed to the disk, and renamed; older ones are removed only afterwards.
"""

import hashlib
import json
import logging
import os
import posixpath
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from rlpipe.data import remote
from rlpipe.data.storage import flush
from rlpipe.training.checkpoint import CheckpointMismatch

FOLDER, MANIFEST = "checkpoints", "manifest.json"

logger = logging.getLogger(__name__)


def place(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies below a stage's `directory`."""
    return directory / FOLDER / f"step-{step:06d}"


def commit(partial: Path, directory: Path, step: int, keep: int, spared: int | None = None) -> None:
    """Make the filled folder `partial`, on the same file system, the checkpoint of `step`; keep the last `keep`, and
    that of the step `spared`."""
    files = {str(file.relative_to(partial)): _seal(file) for file in _files(partial)}
    manifest = partial / MANIFEST
    manifest.write_text(json.dumps({"step": step, "files": files}, indent=2, sort_keys=True), encoding="utf-8")
    for path in (manifest, *(path for path in partial.rglob("*") if path.is_dir()), partial):
        flush(path)
    target = place(directory, step)
    if target.exists():  # of a life of the run that got further than the checkpoint this one goes on from
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(partial, target)
    flush(target.parent)
    remote.keep(directory, _name(target), last=MANIFEST)
    for old in standing(directory)[:-keep]:
        if spared is None or old != place(directory, spared):
            remote.drop(directory, _name(old), first=MANIFEST)
            shutil.rmtree(old)


def agree(directory: Path) -> None:
    """Make the checkpoints here those of the object store that a stage's `directory` stands for, if it stands for one.
    Any that is here alone is of a life of the run that was not the last one, or did not get there whole."""
    if remote.url_of(directory) is None:
        return
    storage = remote.storage_of(directory)
    manifests = {posixpath.dirname(name): name for name in storage.names(f"{FOLDER}/step-*/{MANIFEST}")}
    for folder in standing(directory):
        manifest = manifests.get(_name(folder))
        if manifest is None or not (folder / MANIFEST).is_file() or storage.read(manifest) != _bytes(folder):
            shutil.rmtree(folder)
    for name in manifests:
        if not (directory / name).is_dir():
            remote.fetch(directory, name)


def _name(folder: Path) -> str:
    return f"{FOLDER}/{folder.name}"


def _bytes(folder: Path) -> bytes:
    return (folder / MANIFEST).read_bytes()


def standing(directory: Path) -> list[Path]:
    """The checkpoints of a stage, by their steps."""
    return sorted((directory / FOLDER).glob("step-*"))


def newest(directory: Path) -> Path | None:
    """The last checkpoint of a stage; None if there is none."""
    return next(reversed(standing(directory)), None)


def last_step(directory: Path) -> int:
    """The optimizer step of a stage's last checkpoint; 0 without one."""
    folder = newest(directory)
    return 0 if folder is None else int(folder.name.removeprefix("step-"))


def set_damaged_aside(directory: Path) -> None:
    """After this the last checkpoint of a stage is whole. Warns of every damaged one, which keeps its files under the
    name damaged-step-NNNNNN."""
    while (folder := newest(directory)) and (damage := damage_of(folder)):
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        logger.warning("The checkpoint %s is damaged and not used: %s. It lies in %s now.", folder, damage, aside.name)


def damage_of(folder: Path) -> str:
    """What is wrong with a checkpoint, in words; empty if it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size:,} bytes instead of {expected['bytes']:,}"
        if _digest(file) != expected["sha256"]:
            return f"{name} has other contents than were written"
    return ""


def require_whole(folder: Path) -> None:
    """Raises `CheckpointMismatch` if a checkpoint is damaged."""
    if damage := damage_of(folder):
        raise CheckpointMismatch(
            f"{folder} is the best of the checkpoints and damaged: {damage}. Restore it, or remove the folder and "
            "resume, to take the best of the others."
        )


def check_layout(folder: Path, written: Mapping[str, int], now: Mapping[str, int]) -> None:
    """Raises `CheckpointMismatch` if a checkpoint was written with other values of these keys of the recipe than it is
    to be read with: DeepSpeed splits its state."""
    for key, value in written.items():
        if now.get(key) != value:
            alone = " and without --debug, which has one" if key.endswith(".ranks") and now.get(key) == 1 else ""
            raise CheckpointMismatch(
                f"{folder} was written with {key}={value}, and {key}={now.get(key)} cannot go on from it; resume with "
                f"{key}={value}{alone}"
            )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _seal(file: Path) -> dict[str, int | str]:
    flush(file)
    return {"bytes": file.stat().st_size, "sha256": _digest(file)}


def _digest(file: Path) -> str:
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
