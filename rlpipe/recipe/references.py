"""`${stages.NAME.model}`: the model an earlier stage of a pipeline makes."""

import re
from collections.abc import Mapping
from typing import TypeVar

from rlpipe.recipe.adapter import UNMERGEABLE
from rlpipe.recipe.base import Strict
from rlpipe.recipe.errors import Problem, choices, dotted
from rlpipe.recipe.tree import Node

R = TypeVar("R", bound=Strict)
_REFERENCE = re.compile(r"\$\{(.*)\}$")
_STAGE_MODEL = re.compile(r"\$\{stages\.([^.}]+)\.model\}$")


def is_reference(value: object) -> bool:
    """Whether a value stands for something that only the run knows."""
    return isinstance(value, str) and _REFERENCE.match(value) is not None


def stage_of(value: str) -> str | None:
    """The stage whose model a value stands for, if it stands for one."""
    match = _STAGE_MODEL.match(value)
    return match[1] if match else None


def check(root: Node) -> list[Problem]:
    """References that no run could resolve."""
    stages = root.child("stages")
    order = list(stages.value) if stages and isinstance(stages.value, dict) else []
    problems = []
    for path, node in root.scalars():
        if is_reference(node.value):
            earlier = order[: order.index(path[1])] if path[0] == "stages" and order else []
            problems += _check_one(dotted(path), node, earlier, order)
            problems += _check_made(dotted(path), node, root)
    return problems


def _check_made(key: str, node: Node, root: Node) -> list[Problem]:
    """That the stage makes a model."""
    match = _STAGE_MODEL.match(node.value)
    kind = root.nearest(("stages", match[1], "adapter", "kind")).value if match else None
    if kind not in UNMERGEABLE:
        return []
    why = (
        f"stage `{match[1]}` has adapter.kind={kind}, which cannot be merged into weights and leaves only an "
        "adapter; take a kind there that merges, such as lora"
    )
    return [Problem(node.place, key, f"`{node.value}` refers to no model: {why}")]


def _check_one(key: str, node: Node, earlier: list[str], order: list[str]) -> list[Problem]:
    match = _STAGE_MODEL.match(node.value)
    if match and match[1] in earlier:
        return []
    if not order:
        why = "a reference to a stage works only inside a pipeline's `stages`; give a path or hub id"
    elif not earlier:
        why = "no stage runs before this; give a path or hub id"
    else:
        why = f"expected {choices(f'${{stages.{name}.model}}' for name in earlier)}"
        why = f"stage `{match[1]}` does not run before this one; {why}" if match and match[1] in order else why
    return [Problem(node.place, key, f"`{node.value}` refers to nothing: {why}")]


def resolve(recipe: R, models: Mapping[str, str]) -> R:
    """The recipe with every `${stages.NAME.model}` replaced by `models[NAME]`, which may lack stages yet to run.

    Raises KeyError for a reference to a stage that `models` does not hold.
    """
    return type(recipe).model_validate(_replaced(recipe.model_dump(), models))


def _replaced(value: object, models: Mapping[str, str]) -> object:
    if isinstance(value, dict):
        return {key: _replaced(child, models) for key, child in value.items()}
    if isinstance(value, list):
        return [_replaced(child, models) for child in value]
    match = _STAGE_MODEL.match(value) if isinstance(value, str) else None
    return models[match[1]] if match else value
