"""Copying a shipped recipe or study, with the files beside it that it needs."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rlpipe.recipe.errors import Problem, RecipeError, on_command_line, shown
from rlpipe.recipe.load import read
from rlpipe.recipe.shipped import path_of, studies


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy wrote, the recipe first, and which files it needs but found in place and left alone."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]


def copy(name: str, destination: Path) -> Copied:
    """Copy a shipped recipe or study to a file or into a folder. Never overwrites: what exists is a RecipeError."""
    source = path_of(name)
    target = destination if destination.suffix in (".yaml", ".yml") else destination / source.name
    if target.exists():
        message = f"{shown(target)} exists and is left alone; give another destination, or remove it first"
        raise RecipeError([Problem(on_command_line(), "", message)])
    # A shipped study names a shipped recipe, which is found from anywhere.
    files = () if name.removesuffix(".yaml") in studies() else read(source).files[1:]
    beside = [file for file in files if file.is_relative_to(source.parent)]
    targets = {target: source} | {target.parent / file.relative_to(source.parent): file for file in beside}
    kept = tuple(path for path in targets if path.exists())
    written = tuple(path for path in targets if path not in kept)
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(targets[path], path)
    return Copied(written, kept)
