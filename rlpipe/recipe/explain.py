"""Pydantic's errors as problems that name the place, the key, what was expected, what was found and the nearest key."""

import difflib
import re
from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import takewhile

from pydantic_core import ErrorDetails

from rlpipe.recipe import schema
from rlpipe.recipe.errors import Problem, choices, dotted
from rlpipe.recipe.tree import Node, Path


def explain(root: Node, errors: Iterable[ErrorDetails]) -> list[Problem]:
    """One problem per wrong key, in the order of pydantic's errors."""
    data = root.plain()
    problems: dict[Path, Problem] = {}
    for error in errors:
        path = _path(error, data)
        problems.setdefault(path, _problem(root, data, path, error))
    return list(problems.values())


def _path(error: ErrorDetails, data: object) -> Path:
    """Where an error is in the recipe: pydantic's location also holds the tags of the unions on the way."""
    union, value, path = schema.at((), data), data, []
    for part in error["loc"]:
        if "oneOf" in union:  # pydantic names the chosen member of a tagged union
            union = schema.narrow(union, value)
            continue
        inner = schema.narrow(union, value)
        if part == "[key]" or not ({"properties", "additionalProperties", "items"} & set(inner)):
            break  # the rest names a member of a union of scalars
        path.append(part)
        value, union = schema.inside(value, part), schema.at(path, data) or {}
    if error["type"] in ("union_tag_invalid", "union_tag_not_found") and isinstance(value, dict):
        path.append(error["ctx"]["discriminator"].strip("'"))
    return tuple(path)


def _problem(root: Node, data: object, path: Path, error: ErrorDetails) -> Problem:
    message = _message(root, data, path, error)
    node = blamed(root, path, message) if error["type"] == "value_error" else root.nearest(path)
    return Problem(node.place, dotted(path), message)


def _message(root: Node, data: object, path: Path, error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return _unknown_key(path, data)
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    expected, value = _expected(path, data, error), root.nearest(path).value
    if not root.has(path):
        return f"missing; expected {expected}{_purpose(path, data)}"
    near = _algorithm(path, value) or _near(value, _options(path, data, error))
    return f"expected {expected}, found {found(value)}{near}"


def blamed(root: Node, path: Path, message: str) -> Node:
    """The node that a validator's message, with its `key=value`, is about: of the keys it names one that was typed on
    the command line, else the first; where it names none, the section that was validated."""
    named = [_below(path, key) for key in re.findall(r"([\w.]+)=", message)]
    leaves = (leaf for key in named if root.has(key) for _, leaf in root.nearest(key).scalars())
    typed = next((leaf for leaf in leaves if leaf.place.typed), None)
    return typed or root.nearest(named[0] if named else path)


def _below(path: Path, key: str) -> Path:
    return (*path, *(int(part) if part.isdecimal() else part for part in key.split(".")))


def _options(path: Path, data: object, error: ErrorDetails) -> list[str]:
    """The texts a value is chosen from, where it is a choice."""
    if error["type"].startswith("union_tag"):
        return list(schema.at(path[:-1], data)["discriminator"]["mapping"])
    here = schema.at(path, data) or {}
    return [option for option in here.get("enum", [here.get("const")]) if isinstance(option, str)]


def _expected(path: Path, data: object, error: ErrorDetails) -> str:
    if error["type"].startswith("union_tag"):
        return choices(_options(path, data, error))
    here = schema.at(path, data)
    return schema.describe(here) if here else error["msg"]


def _purpose(path: Path, data: object) -> str:
    here = schema.at(path, data) or {}
    words = here.get("description", "")
    return f" ({words.rstrip('.')})" if words and "oneOf" not in here else ""


def found(value: object) -> str:
    """What stands there, in words."""
    if isinstance(value, (dict, list)):
        return f"{'a' if value else 'an empty'} {'list' if isinstance(value, list) else 'section'}"
    if isinstance(value, str):
        return f"the text `{value}`"
    return "nothing" if value is None else str(value).lower()


def _algorithm(path: Path, value: object) -> str:
    """For an algorithm's name that stands where its task should, which many tools have there."""
    algorithms = schema.at(("algorithm",), {"task": "rl"})["discriminator"]["mapping"]
    if path[-1:] == ("task",) and isinstance(value, str) and value.lower() in algorithms:
        return f"; write `task: rl` and `algorithm: {{name: {value.lower()}}}`"
    return ""


def _near(value: object, options: Sequence[str]) -> str:
    near = difflib.get_close_matches(value.lower(), options, n=1) if isinstance(value, str) else []
    return f"; did you mean `{near[0]}`?" if near else ""


def _unknown_key(path: Path, data: object) -> str:
    *parent, key = path
    section = schema.at(parent, data)
    here = schema.narrow(section, reduce(schema.inside, parent, data))
    whose = f"of `{dotted(parent)}`" if parent else "of the recipe"
    rivals = [member for member in schema.members(section) if key in member.get("properties", {})]
    if rivals:
        return f"`{key}` does not go with {_label(section, here)} {whose}{_goes_with(section, rivals)}"
    candidates = _suggestions(tuple(path), list(here["properties"]), data)
    if candidates:
        return f"`{key}` is not a key {whose}; did you mean {' or '.join(_pointed(c, key) for c in candidates)}?"
    return f"`{key}` is not a key {whose}; its keys are {', '.join(here['properties'])}"


def _pointed(candidate: Path, key: str) -> str:
    return f"`{dotted(candidate)}`" + (" at the top level" if candidate == (key,) else "")


def _label(union: dict, member: dict) -> str:
    """What makes a section this member of the union: `kind: arithmetic`, or the key only it has."""
    tag = schema.tag_key(union)
    return f"`{tag}: {member['properties'][tag]['const']}`" if tag else f"`{member['required'][0]}`"


def _goes_with(union: dict, rivals: list[dict]) -> str:
    return f"; it goes with {' or '.join(_label(union, rival) for rival in rivals)}" if schema.tag_key(union) else ""


def _suggestions(path: Path, siblings: list[str], data: object) -> list[Path]:
    """Keys that may have been meant: of the same name elsewhere (`kl_coefficient` is `kl.coefficient`, `max_steps` is
    `steps`), else of a similar name here, else elsewhere."""
    *parent, key = path
    elsewhere = list(schema.paths(data))
    asked = {key, key.removeprefix("max_")}
    same = [p for p in elsewhere if asked & {p[-1], _initials(p[-1]), "_".join(map(str, p[-2:]))}]
    if same:
        return _closest(same, path)
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.7)
    if near:
        return [(*parent, near[0])]
    similar = difflib.get_close_matches(key, sorted({str(p[-1]) for p in elsewhere}), n=1, cutoff=0.7)
    return _closest([p for p in elsewhere if p[-1] in similar], path)


def _initials(key: str | int) -> str:
    """`lr` for `learning_rate`: how people abbreviate. Nothing for a single word."""
    return "".join(word[:1] for word in str(key).split("_")) if "_" in str(key) else ""


def _closest(candidates: list[Path], path: Path) -> list[Path]:
    """The candidates that share most of the way with `path`, at most three."""
    most = max((_shared(candidate, path) for candidate in candidates), default=0)
    return list(dict.fromkeys(candidate for candidate in candidates if _shared(candidate, path) == most))[:3]


def _shared(one: Path, other: Path) -> int:
    """How many keys two paths have in common before they part."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
