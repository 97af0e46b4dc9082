"""What an earlier stage of a pipeline makes:

${stages.NAME.model}         the model of a training
${stages.NAME.preferences}   of a labelling: pairs, single responses with labels, the best responses
${stages.NAME.unpaired}
${stages.NAME.best}
"""

import re
from collections.abc import Mapping
from typing import TypeVar

from rlpipe.recipe.adapter import UNMERGEABLE
from rlpipe.recipe.base import Strict
from rlpipe.recipe.errors import Problem, choices, dotted
from rlpipe.recipe.tree import Node

R = TypeVar("R", bound=Strict)
_REFERENCE = re.compile(r"\$\{(.*)\}$")
MADE = {"model": "model", "preferences": "labels/preferences", "unpaired": "labels/unpaired", "best": "labels/best"}
"""Where each lies in the stage's directory."""
_MADE_BY_STAGE = re.compile(r"\$\{stages\.([^.}]+)\.(" + "|".join(MADE) + r")\}$")


def is_reference(value: object) -> bool:
    """Whether a value stands for something that only the run knows."""
    return isinstance(value, str) and _REFERENCE.match(value) is not None


def stage_of(value: str) -> str | None:
    """The stage whose model a value stands for, if it stands for one."""
    match = _MADE_BY_STAGE.match(value)
    return match[1] if match and match[2] == "model" else None


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
    """That the stage makes such a thing."""
    match = _MADE_BY_STAGE.match(node.value)
    if match and (labels := root.nearest(("stages", match[1], "task")).value == "label") != (match[2] != "model"):
        made = ", ".join(f"`${{stages.{match[1]}.{each}}}`" for each in MADE if (each != "model") == labels)
        what = "labels, which makes data" if labels else "trains, which makes a model"
        return [Problem(node.place, key, f"`{node.value}` refers to nothing: stage `{match[1]}` {what}: {made}")]
    if match and root.nearest(("stages", match[1], "task")).value == "eval":
        why = f"stage `{match[1]}` (task eval) compares models and makes none"
        return [Problem(node.place, key, f"`{node.value}` refers to nothing: {why}")]
    kind = root.nearest(("stages", match[1], "adapter", "kind")).value if match else None
    if kind not in UNMERGEABLE:
        return []
    why = (
        f"stage `{match[1]}` has adapter.kind={kind}, which cannot be merged into weights and leaves only an "
        "adapter; take a kind there that merges, such as lora"
    )
    return [Problem(node.place, key, f"`{node.value}` refers to no model: {why}")]


def _check_one(key: str, node: Node, earlier: list[str], order: list[str]) -> list[Problem]:
    match = _MADE_BY_STAGE.match(node.value)
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


def resolve(recipe: R, places: Mapping[str, str]) -> R:
    """The recipe with every reference replaced by where that lies; `places` are the directories of stages, and may lack
    those yet to run.

    Raises KeyError for a reference to a stage that `places` does not hold.
    """
    return type(recipe).model_validate(_replaced(recipe.model_dump(), places))


def _replaced(value: object, places: Mapping[str, str]) -> object:
    if isinstance(value, dict):
        return {key: _replaced(child, places) for key, child in value.items()}
    if isinstance(value, list):
        return [_replaced(child, places) for child in value]
    match = _MADE_BY_STAGE.match(value) if isinstance(value, str) else None
    return f"{places[match[1]]}/{MADE[match[2]]}" if match else value
