"""From a recipe file and overrides to a validated recipe.

    file -> nodes with lines -> extends -> overrides -> local paths -> references -> pydantic

What this needs is small on purpose: neither torch nor ray, so that a mistake is answered at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from rlpipe.recipe import overrides, references
from rlpipe.recipe.algorithm import kinds
from rlpipe.recipe.errors import Problem, RecipeError, dotted, on_command_line
from rlpipe.recipe.explain import explain
from rlpipe.recipe.inherit import Reader
from rlpipe.recipe.local_files import Locator
from rlpipe.recipe.resolved import REDACTED
from rlpipe.recipe.schema import adapter
from rlpipe.recipe.shipped import find
from rlpipe.recipe.tasks import Recipe
from rlpipe.recipe.tree import Node


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid recipe, and what this machine lacks for it."""

    recipe: Recipe
    files: tuple[Path, ...]
    """Every file it was made from or names, the recipe's own first."""
    missing: tuple[Problem, ...]
    """Local files and folders the recipe names that are not here: no run without them, but nothing wrong elsewhere."""


def read(name: str | Path, changes: Sequence[str] = ()) -> Loaded:
    """Read the recipe of a file or of a shipped name, with `key.sub=value` changes. Raises RecipeError."""
    file = find(str(name), on_command_line())
    reader = Reader()
    root, problems = overrides.apply(reader.read(file), changes)
    return _loaded(root, [*reader.problems, *problems], tuple(reader.files))


def made(values: dict[str, object], changes: Sequence[str] = ()) -> Loaded:
    """As `read`, of a recipe that the command line makes instead of a file. Raises RecipeError."""
    root, problems = overrides.apply(_typed(values), changes)
    return _loaded(root, problems, ())


def load(name: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of `read` alone, whether or not the files it names are on this machine."""
    return read(name, changes).recipe


def require_files(loaded: Loaded) -> Recipe:
    """The recipe, once every local file it names is here. Raises RecipeError."""
    if loaded.missing:
        raise RecipeError(loaded.missing)
    return loaded.recipe


def _loaded(root: Node, problems: list[Problem], files: tuple[Path, ...]) -> Loaded:
    _require_credentials(root)
    local = Locator(kinds.everywhere(root))
    recipe = _validated(local.root, [*problems, *references.check(root)])
    return Loaded(recipe, (*files, *local.found), tuple(local.missing))


def _typed(value: object) -> Node:
    """Values as nodes that stand on the command line."""
    if isinstance(value, dict):
        return Node({key: _typed(child) for key, child in value.items()}, on_command_line())
    if isinstance(value, list):
        return Node([_typed(child) for child in value], on_command_line())
    return Node(value, on_command_line())


def _require_credentials(root: Node) -> None:
    """A run's own recipe is written without them."""
    missing = [
        Problem(node.place, dotted(path), f"a credential was left out here; give it again: {dotted(path)}=VALUE")
        for path, node in root.scalars()
        if isinstance(node.value, str) and REDACTED in node.value
    ]
    if missing:
        raise RecipeError(missing)


def _validated(root: Node, problems: list[Problem]) -> Recipe:
    try:
        recipe = adapter().validate_python(root.plain())
    except ValidationError as error:
        problems = [*problems, *explain(root, error.errors(include_url=False))]
    if problems:
        raise RecipeError(problems)
    return recipe
