"""Paths in a recipe: found beside the recipe or from the working directory; those that are nowhere are told."""

import re
from collections.abc import Iterator
from pathlib import Path

from rlpipe.recipe import schema, shipped
from rlpipe.recipe.base import Strict
from rlpipe.recipe.errors import Place, Problem, dotted
from rlpipe.recipe.references import is_reference
from rlpipe.recipe.tree import Node
from rlpipe.recipe.tree import Path as KeyPath

_LOCAL = re.compile(r"(/|\./|\.\./|~|runs/)|.*\.(jsonl|ndjson|json|csv|parquet|txt|md)(\.gz)?$")
"""What cannot be a hub id."""
DATA = "data"
"""The section whose folders hold records; all others hold models."""


class Locator:
    """Makes the paths of existing files absolute; remembers those, and the local files that are not on this machine."""

    def __init__(self, root: Node) -> None:
        self.data = root.plain()
        self.found: list[Path] = []
        self.missing: list[Problem] = []
        self.root = self._located(root, ())

    def _located(self, node: Node, path: KeyPath) -> Node:
        if isinstance(node.value, dict):
            return Node({key: self._located(child, (*path, key)) for key, child in node.value.items()}, node.place)
        if isinstance(node.value, list):
            return Node([self._located(child, (*path, i)) for i, child in enumerate(node.value)], node.place)
        text, needed = _path_in(node.value, schema.at(path, self.data) or {})
        found = _find(text, node.place) if text else None
        if found is not None:
            self.found.append(found)
            if why := _no_model(found, text, path, self.data):
                self.missing.append(Problem(node.place, dotted(path), why))
            return Node(str(found) + node.value.removeprefix(text), node.place)
        if needed:
            self.missing.append(Problem(node.place, dotted(path), _advice(text, node.place, dotted(path))))
        return node


def named(recipe: Strict) -> Iterator[tuple[str, str]]:
    """The files and folders of this machine that a recipe names, each after its dotted key."""
    data = recipe.model_dump()
    for path, value in _scalars(data, ()):
        text, _ = _path_in(value, schema.at(path, data) or {})
        if text and Path(text).is_absolute():
            yield dotted(path), text


def _scalars(value: object, path: KeyPath) -> Iterator[tuple[KeyPath, object]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if children is None:
        yield path, value
        return
    for key, child in children:
        yield from _scalars(child, (*path, key))


def _path_in(value: object, leaf: dict) -> tuple[str, bool]:
    """The path a value holds, by what the schema says of its key, and whether it can only be a local one."""
    kind = schema.narrow(leaf, value).get("format")
    if not isinstance(value, str) or not value or is_reference(value):
        return "", False
    if kind == "path-or-hub-id":
        return value, _LOCAL.match(value) is not None
    if kind == "python-function":
        file = value.rpartition(":")[0]
        return (file, True) if file.endswith(".py") else ("", False)
    return (value, True) if kind == "path" else ("", False)


def _find(text: str, place: Place) -> Path | None:
    relative = Path(text).expanduser()
    candidates = (place.folder / relative, Path.cwd() / relative)
    return next((candidate.resolve() for candidate in candidates if candidate.exists()), None)


def _no_model(found: Path, text: str, path: KeyPath, data: object) -> str:
    """Why a folder that a model is to be loaded from holds none; empty for what may be one."""
    kind = schema.narrow(schema.at(path, data) or {}, text).get("format")
    if kind != "path-or-hub-id" or DATA in path or not found.is_dir() or _is_model(found):
        return ""
    inside = [folder for folder in (found / "model", *sorted(found.glob("stages/*/model"))) if _is_model(folder)]
    near = " or ".join(f"`{Path(text) / folder.relative_to(found)}`" for folder in inside)
    return f"the folder `{text}` holds no model: it has no config.json" + (f"; did you mean {near}?" if near else "")


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _advice(text: str, place: Place, key: str) -> str:
    folders = dict.fromkeys(str(folder.absolute()) for folder in (place.folder, Path.cwd()))
    where = "" if Path(text).expanduser().is_absolute() else f" in {' or '.join(folders)}"
    return f"no file or folder `{text}`{where}; {_made(text)}, or give another with `{key}=PATH`"


def _made(text: str) -> str:
    """What makes a path that is not there."""
    if not text.startswith("runs/"):
        return "put it there"
    maker = shipped.running_as("".join(Path(text).parts[1:2]))
    return f"`rlpipe run {maker}` makes it" if maker else "run the recipe that makes it first"
