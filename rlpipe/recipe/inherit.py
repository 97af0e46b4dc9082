"""`extends: other.yaml`: a recipe, or any section of one, as a small change of another file."""

from pathlib import Path

from rlpipe.recipe import yaml_text
from rlpipe.recipe.algorithm.kinds import with_kinds
from rlpipe.recipe.errors import Problem, RecipeError, dotted, shown
from rlpipe.recipe.shipped import find
from rlpipe.recipe.tree import Node


class Reader:
    """Reads recipe files, following `extends`; remembers the files and the problems that did not stop it."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.problems: list[Problem] = []

    def read(self, file: Path, chain: tuple[Path, ...] = ()) -> Node:
        """The nodes of a file with everything it extends merged in."""
        root, problems = yaml_text.read(file)
        self.files.append(file.resolve())
        self.problems += problems
        return self._expanded(root, (*chain, file.resolve()), ())

    def _expanded(self, node: Node, chain: tuple[Path, ...], path: tuple[str, ...]) -> Node:
        if not isinstance(node.value, dict):
            return node
        own = {key: self._expanded(child, chain, (*path, key)) for key, child in node.value.items() if key != "extends"}
        over = Node(own, node.place)
        extends = node.value.get("extends")
        return merge(self._base(extends, chain, path), over, path[-1:]) if extends else over

    def _base(self, extends: Node, chain: tuple[Path, ...], path: tuple[str, ...]) -> Node:
        key = dotted((*path, "extends"))
        if not isinstance(extends.value, str):
            message = "expected one recipe file, for example `extends: base.yaml`"
            raise RecipeError([Problem(extends.place, key, message)])
        file = find(extends.value, extends.place, key)
        if file.resolve() in chain:
            around = " → ".join(shown(f) for f in (*chain[chain.index(file.resolve()) :], file.resolve()))
            raise RecipeError([Problem(extends.place, key, f"these files extend each other in a circle: {around}")])
        return self.read(file, chain)


def merge(base: Node, over: Node, name: tuple[str, ...] = ()) -> Node:
    """`over` laid on `base`, both found under the key `name`: mappings merge, anything else replaces.

    A mapping that turns into another kind of thing (`data.kind`, a pretrained model instead of one from scratch)
    replaces the old one: the old kind's keys would mean nothing there.
    """
    base, over = section(base, name), section(over, name)
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)) or switches(base, over.value, name):
        return over
    merged = dict(base.value)
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child, (key,)) if key in merged else child
    return Node(merged, over.place)


def switches(base: Node, keys: dict[str, Node], name: tuple[str | int, ...]) -> bool:
    """Whether laying `keys` on the mapping `base`, which is found under `name`, makes it another kind of thing."""
    if name == ("model",):
        return ("scratch" in keys and "path" in base.value) or ("path" in keys and "scratch" in base.value)
    tag = "name" if name == ("algorithm",) else "kind"
    return tag in keys and tag in base.value and keys[tag].value != base.value[tag].value


def section(node: Node, name: tuple[str | int, ...]) -> Node:
    """What stands under the key `name`, written out: `model: PATH` is short for `model: {path: PATH}`, and parts of an
    algorithm may leave out the kind that its preset gives them."""
    if name == ("algorithm",) and isinstance(node.value, dict):
        return with_kinds(node)
    return Node({"path": node}, node.place) if name == ("model",) and isinstance(node.value, str) else node
