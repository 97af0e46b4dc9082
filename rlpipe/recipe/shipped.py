"""The recipes that come with rlpipe, and how a recipe is named."""

import difflib
import re
from pathlib import Path

from rlpipe.recipe.errors import Place, Problem, RecipeError, on_command_line

STUDIES = "studies/"
"""The folder of studies among the recipes."""
_LIST = "`rlpipe recipes list`"


def folder() -> Path:
    """Where the shipped recipes lie: inside an installed package, beside the package in a clone."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """Shipped recipes, as `arithmetic/grpo`."""
    return [name for name in _files() if not name.startswith(STUDIES) and _is_recipe(name)]


def _is_recipe(name: str) -> bool:
    """Beside recipes lie YAML files of other kinds that they name: templates, constitutions."""
    text = (folder() / f"{name}.yaml").read_text(encoding="utf-8")
    return re.search(r"^(task|extends):", text, re.MULTILINE) is not None


def studies() -> list[str]:
    """Shipped studies, as `studies/algorithms`: no recipes, but comparisons of what changes of one do."""
    return [name for name in _files() if name.startswith(STUDIES)]


def _files() -> list[str]:
    return sorted(file.relative_to(folder()).with_suffix("").as_posix() for file in folder().rglob("*.yaml"))


def headline(name: str) -> str:
    """The first line of the header of a shipped recipe or study."""
    return path_of(name).read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").rstrip()


def running_as(run: str) -> str | None:
    """The shipped recipe that runs in runs/`run`, if there is one."""
    texts = ((name, (folder() / f"{name}.yaml").read_text(encoding="utf-8")) for name in names())
    return next((name for name, text in texts if f"name: {run}" in text.splitlines()), None)


def path_of(name: str) -> Path:
    """The file of a shipped recipe or study; raises RecipeError naming the nearest."""
    known = names() + studies()
    if name.removesuffix(".yaml") not in known:
        told = f"no shipped recipe `{name}`" + (_near(name, known) or f"; {_LIST} shows all")
        raise RecipeError([Problem(on_command_line(), "", told)])
    return folder() / f"{name.removesuffix('.yaml')}.yaml"


def find(text: str, place: Place, key: str = "") -> Path:
    """The file a recipe is named by: a path relative to `place`, or the name of a shipped recipe."""
    file = place.folder / Path(text).expanduser()
    if file.is_file():
        return file
    if text.removesuffix(".yaml") in names():
        return path_of(text)
    if text.removesuffix(".yaml") in studies():
        raise RecipeError([Problem(place, key, f"`{text}` is a study; `rlpipe study {text}` runs it")])
    what = f"`{text}` is a folder; expected a recipe file" if file.is_dir() else f"no recipe file `{text}`"
    raise RecipeError([Problem(place, key, what + _recipe_instead(text, place))])


def find_study(text: str, place: Place) -> Path:
    """The file a study is named by: a path relative to `place`, or the name of a shipped study."""
    file = place.folder / Path(text).expanduser()
    if file.is_file():
        return file
    if text.removesuffix(".yaml") in studies():
        return path_of(text)
    if text.removesuffix(".yaml") in names():
        raise RecipeError([Problem(place, "", f"`{text}` is a recipe; `rlpipe run {text}` runs it")])
    what = f"`{text}` is a folder; expected a study file" if file.is_dir() else f"no study file `{text}`"
    raise RecipeError([Problem(place, "", what + _instead(text, studies(), "studies"))])


def _recipe_instead(name: str, place: Place) -> str:
    """There are too many shipped recipes to name them all."""
    where = "" if Path(name).expanduser().is_absolute() else f" in {place.folder.absolute()}"
    return _near(name, names()) or f"{where}; {_LIST} shows those that come with it"


def _instead(name: str, options: list[str], what: str) -> str:
    return _near(name, options) or f"; shipped {what} are {', '.join(options)}"


def _near(name: str, options: list[str]) -> str:
    near = difflib.get_close_matches(name.removesuffix(".yaml"), options, n=1)
    return f"; did you mean `{near[0]}`?" if near else ""
