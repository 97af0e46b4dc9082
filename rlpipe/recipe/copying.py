"""Copying a shipped recipe, with the files beside it that it needs."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rlpipe.recipe.errors import Problem, RecipeError, on_command_line, shown
from rlpipe.recipe.load import read
from rlpipe.recipe.shipped import path_of


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy wrote, the recipe first, and which files it needs but found in place and left alone."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]


def copy(name: str, destination: Path) -> Copied:
    """Copy a shipped recipe to a file or into a folder. Never overwrites: an existing recipe is a RecipeError."""
    source = path_of(name)
    target = destination if destination.suffix in (".yaml", ".yml") else destination / source.name
    if target.exists():
        message = f"{shown(target)} exists and is left alone; give another destination, or remove it first"
        raise RecipeError([Problem(on_command_line(), "", message)])
    beside = [file for file in read(source).files[1:] if file.is_relative_to(source.parent)]
    targets = {target: source} | {target.parent / file.relative_to(source.parent): file for file in beside}
    kept = tuple(path for path in targets if path.exists())
    written = tuple(path for path in targets if path not in kept)
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(targets[path], path)
    return Copied(written, kept)
