"""YAML to nodes that keep their lines, and back.

Scalars follow the core schema of YAML 1.2, not PyYAML's YAML 1.1: `1e-4` is a number, and `on`, `yes`, `12:30` and
dates are text. Duplicate keys are problems instead of the last one winning.
"""

import re
from pathlib import Path
from typing import ClassVar

import yaml

from rlpipe.recipe.errors import Problem, RecipeError, dotted, in_file
from rlpipe.recipe.tree import Node, Scalar

_TAG = "tag:yaml.org,2002:"
_PATTERNS = {  # tag -> what a plain scalar of it looks like
    "null": re.compile(r"(~|null|Null|NULL|)$"),
    "bool": re.compile(r"(true|True|TRUE|false|False|FALSE)$"),
    "int": re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    "float": re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict] = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: ClassVar[dict] = {}

    def ignore_aliases(self, data: object) -> bool:
        return True


for _tag, _pattern in _PATTERNS.items():
    _Loader.add_implicit_resolver(_TAG + _tag, _pattern, None)
    _Dumper.add_implicit_resolver(_TAG + _tag, _pattern, None)


RECIPE = "a recipe is a mapping that begins with a key such as `task: rl`"


def read(file: Path, what: str = RECIPE) -> tuple[Node, list[Problem]]:
    """The nodes of a file, as `parse` has them."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Problem(in_file(file, 1), "", f"cannot be read as text: {error}")]) from None
    return parse(text, file, what)


def parse(text: str, file: Path, what: str = RECIPE) -> tuple[Node, list[Problem]]:
    """The nodes of a recipe file, or of another mapping that `what` describes, and its duplicate keys. Raises
    RecipeError where there is nothing to go on with."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError([Problem(in_file(file, mark.line + 1), "", f"not valid YAML: {error.problem}")]) from None
    except yaml.YAMLError as error:
        raise RecipeError([Problem(in_file(file, 1), "", f"not valid YAML: {error}")]) from None
    if not isinstance(root, yaml.MappingNode):
        found = "nothing" if root is None or root.value == "" else f"a {root.id}"
        raise RecipeError([Problem(in_file(file, 1), "", f"{what}; this file holds {found}")])
    reading = _Reading(file)
    return reading.node(root, root, ()), reading.problems


def inline(text: str) -> object:
    """The value of `{…}`, `[…]` or quoted text; raises yaml.YAMLError."""
    reading = _Reading(Path("override"))
    root = yaml.compose(text, Loader=_Loader)
    value = reading.node(root, root, ()).plain()
    if reading.problems:
        raise yaml.YAMLError(reading.problems[0].message)
    return value


def scalar(text: str) -> Scalar:
    """The typed value of a plain scalar: `3`, `1e-4`, `true`, `null`, or the text itself."""
    for tag, pattern in _PATTERNS.items():
        if pattern.match(text):
            return _typed(tag, text)
    return text


def dump(data: object) -> str:
    """YAML text that `parse` reads back to the same values."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _typed(tag: str, text: str) -> Scalar:
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() == "true"
    if tag == "int":
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if tag == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


class _Reading:
    """Turns PyYAML's nodes into ours, collecting problems on the way."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.open: list[yaml.Node] = []  # the nodes around the current one, to notice an alias of itself

    def node(self, source: yaml.Node, key: yaml.Node, path: tuple[str | int, ...]) -> Node:
        place = in_file(self.file, key.start_mark.line + 1)
        if any(source is outer for outer in self.open):
            raise RecipeError([Problem(place, dotted(path), "an alias that contains itself")])
        self.open.append(source)
        value = self._value(source, path)
        self.open.pop()
        return Node(value, place)

    def _value(self, source: yaml.Node, path: tuple[str | int, ...]) -> dict | list | Scalar:
        if isinstance(source, yaml.MappingNode):
            return self._mapping(source, path)
        if isinstance(source, yaml.SequenceNode):
            return [self.node(item, item, (*path, i)) for i, item in enumerate(source.value)]
        return _typed(source.tag.removeprefix(_TAG), source.value)

    def _mapping(self, source: yaml.MappingNode, path: tuple[str | int, ...]) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        for key, value in source.value:
            name = str(key.value)  # keys are names: `on` and `1` stay as written
            node = self.node(value, key, (*path, name))
            if name in nodes:
                message = f"this key stands twice; the first is at {nodes[name].place}"
                self.problems.append(Problem(node.place, dotted((*path, name)), message))
            nodes[name] = node
        return nodes
