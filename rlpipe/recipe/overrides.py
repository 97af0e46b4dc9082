"""`key.sub=value` on the command line."""

import math
from collections.abc import Sequence

import yaml

from rlpipe.recipe.errors import Place, Problem, RecipeError, choices, dotted, in_override
from rlpipe.recipe.inherit import merge, section
from rlpipe.recipe.tree import Node
from rlpipe.recipe.yaml_text import inline, scalar


def apply(root: Node, overrides: Sequence[str]) -> tuple[Node, list[Problem]]:
    """The recipe with the overrides laid on it, and the problems of those that could not be."""
    problems: list[Problem] = []
    # A key that changes what a section is empties it, so it goes before the others, in whatever order they were typed,
    # and an outer section's before an inner one's.
    for text in sorted(overrides, key=_turn):
        try:
            root = _apply_one(root, text)
        except RecipeError as error:
            problems += error.problems
    return root, problems


def _key(text: str) -> list[str]:
    return text.partition("=")[0].split(".")


def _turn(text: str) -> float:
    path = _key(text)
    return len(path) if _switches(path) else math.inf


def _switches(path: list[str]) -> bool:
    return path[-1] == "kind" or path[-2:] in (["model", "scratch"], ["model", "path"], ["algorithm", "name"])


def _apply_one(root: Node, text: str) -> Node:
    path, place = _key(text), in_override(text)
    if "=" not in text or not all(path):
        raise RecipeError([Problem(place, "", "expected KEY=VALUE, for example `schedule.steps=20`")])
    stages = root.child("stages")
    if stages and path[0] == "stages" and len(path) > 1 and not stages.child(path[1]):
        raise RecipeError([Problem(place, dotted(path), f"no stage `{path[1]}`; expected {choices(stages.value)}")])
    try:
        return _lay(root, path, _placed(_value(text.partition("=")[2]), place), ())
    except IndexError as error:
        raise RecipeError([Problem(place, dotted(path), str(error))]) from None
    except yaml.YAMLError as error:
        message = f"not valid YAML after `=`: {getattr(error, 'problem', None) or error}"
        raise RecipeError([Problem(place, dotted(path), message)]) from None


def _value(text: str) -> object:
    """Collections and quoted text are YAML; anything else is one plain scalar, so that `a=x: y # z` needs no quotes."""
    return inline(text) if text[:1] in ("{", "[", '"', "'") else scalar(text)


def _placed(value: object, place: Place) -> Node:
    if isinstance(value, dict):
        return Node({key: _placed(child, place) for key, child in value.items()}, place)
    if isinstance(value, list):
        return Node([_placed(child, place) for child in value], place)
    return Node(value, place)


def _lay(node: Node, path: Sequence[str], new: Node, name: tuple[str, ...]) -> Node:
    """`node`, which stands under the key `name`, with `new` laid on the path below it."""
    if not path:
        return merge(node, new, name)
    key, *rest = path
    node = section(node, name)
    if isinstance(node.value, list):
        return _lay_in_list(node, key, rest, new)
    child = node.child(key)
    below = _lay(child, rest, new, (key,)) if child else _nested(rest, new)
    return merge(node, Node({key: below}, node.place if isinstance(node.value, dict) else new.place), name)


def _lay_in_list(node: Node, index: str, rest: Sequence[str], new: Node) -> Node:
    items = list(node.value)
    if not index.isdecimal() or int(index) >= len(items):
        raise IndexError(f"`{index}` is no index of this list; expected {choices(range(len(items)))}")
    items[int(index)] = _lay(items[int(index)], rest, new, ())
    return Node(items, node.place)


def _nested(path: Sequence[str], new: Node) -> Node:
    return Node({path[0]: _nested(path[1:], new)}, new.place) if path else new
