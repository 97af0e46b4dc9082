"""The recipes that come with rlpipe, and how a recipe is named."""

import difflib
from pathlib import Path

from rlpipe.recipe.errors import Place, Problem, RecipeError, on_command_line


def folder() -> Path:
    """Where the shipped recipes lie: inside an installed package, beside the package in a clone."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """Shipped recipes, as `arithmetic/grpo`."""
    return sorted(str(file.relative_to(folder()).with_suffix("")) for file in folder().rglob("*.yaml"))


def headline(name: str) -> str:
    """The first line of a shipped recipe's header."""
    return path_of(name).read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").rstrip()


def path_of(name: str) -> Path:
    """The file of a shipped recipe; raises RecipeError naming the nearest."""
    if name.removesuffix(".yaml") not in names():
        raise RecipeError([Problem(on_command_line(), "", f"no shipped recipe `{name}`{_instead(name)}")])
    return folder() / f"{name.removesuffix('.yaml')}.yaml"


def find(text: str, place: Place, key: str = "") -> Path:
    """The file a recipe is named by: a path relative to `place`, or the name of a shipped recipe."""
    file = place.folder / Path(text).expanduser()
    if file.is_file():
        return file
    if text.removesuffix(".yaml") in names():
        return path_of(text)
    what = f"`{text}` is a folder; expected a recipe file" if file.is_dir() else f"no recipe file `{text}`"
    raise RecipeError([Problem(place, key, what + _instead(text))])


def _instead(name: str) -> str:
    near = difflib.get_close_matches(name.removesuffix(".yaml"), names(), n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; shipped recipes are {', '.join(names())}"
