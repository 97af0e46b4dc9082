"""Files beside a recipe that have a schema of their own: what is wrong with one is told as of recipes, all at once."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rlpipe.recipe import yaml_text
from rlpipe.recipe.base import Strict
from rlpipe.recipe.errors import Problem, RecipeError, dotted
from rlpipe.recipe.tree import Node
from rlpipe.recipe.tree import Path as KeyPath

Content = TypeVar("Content", bound=Strict)


def read(file: Path, content: type[Content], what: str) -> Content:
    """The content of a YAML file. `what` says what it is, for one that is nothing of the sort. Raises RecipeError,
    each problem with file, line and key."""
    root, problems = yaml_text.read(file, what)
    try:
        read = content.model_validate(root.plain())
    except ValidationError as error:
        told = [_problem(root, content, e) for e in error.errors(include_url=False)]
        raise RecipeError([*problems, *{problem.key: problem for problem in told}.values()]) from None
    if problems:
        raise RecipeError(problems)
    return read


def _problem(root: Node, content: type[Strict], error: ErrorDetails) -> Problem:
    from rlpipe.recipe.explain import blamed  # knows the schema of recipes, which name files that are read here

    path = _path(content, error)
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return Problem(blamed(root, path, message).place, dotted(path), message)
    return Problem(root.nearest(path).place, dotted(path), _message(root, content, path, error))


def _path(content: type[Strict], error: ErrorDetails) -> KeyPath:
    """Where the error is, without pydantic's names for the members of a union."""
    path: KeyPath = ()
    for key in error["loc"]:
        if not {"properties", "items"} & _schema_at(content, path).keys():
            break
        path = (*path, key)
    return path


def _message(root: Node, content: type[Strict], path: KeyPath, error: ErrorDetails) -> str:
    from rlpipe.recipe.explain import found
    from rlpipe.recipe.schema import describe

    *parent, key = path
    if error["type"] == "extra_forbidden":
        return _unknown(str(key), list(_schema_at(content, parent)["properties"]))
    here = _schema_at(content, path)
    if not root.has(path):
        return f"missing; expected {describe(here)} ({here['description'].rstrip('.')})"
    return f"expected {describe(here)}, found {found(root.nearest(path).value)}"


def _unknown(key: str, keys: list[str]) -> str:
    meant = difflib.get_close_matches(key, keys, n=1)
    return f"`{key}` is not a key here; " + (f"did you mean `{meant[0]}`?" if meant else f"keys are {', '.join(keys)}")


def _schema_at(content: type[Strict], path: Sequence[str | int]) -> dict:
    """The JSON Schema of what stands at a path, without references."""
    document = content.model_json_schema()
    here = _inlined(document, document.get("$defs", {}))
    for key in path:
        here = here["items"] if isinstance(key, int) else here["properties"][key]
    return here


def _inlined(value: object, definitions: dict[str, dict]) -> object:
    if isinstance(value, list):
        return [_inlined(part, definitions) for part in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        target = definitions[value["$ref"].rsplit("/", 1)[-1]]
        value = {**target, **{key: part for key, part in value.items() if key != "$ref"}}
    return {key: _inlined(part, definitions) for key, part in value.items()}
