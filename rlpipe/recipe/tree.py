"""A recipe between its text and its schema: values that know where they were written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlpipe.recipe.errors import Place

Scalar = str | int | float | bool | None
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A mapping, list or scalar, and the place of the key that holds it."""

    value: "dict[str, Node] | list[Node] | Scalar"
    place: Place

    def plain(self) -> object:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, key: str | int) -> "Node | None":
        """The node under a key or list index, if there is one."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and isinstance(key, int) and 0 <= key < len(self.value):
            return self.value[key]
        return None

    def nearest(self, path: Sequence[str | int]) -> "Node":
        """The node at a path, or the deepest one above it that exists."""
        node = self
        for key in path:
            child = node.child(key)
            if child is None:
                return node
            node = child
        return node

    def has(self, path: Sequence[str | int]) -> bool:
        """Whether there is a node at a path."""
        node: Node | None = self
        for key in path:
            node = node.child(key) if node else None
        return node is not None

    def scalars(self, path: Path = ()) -> "Iterator[tuple[Path, Node]]":
        """Every scalar below, with its path."""
        children = self.value.items() if isinstance(self.value, dict) else ()
        children = enumerate(self.value) if isinstance(self.value, list) else children
        if not isinstance(self.value, (dict, list)):
            yield path, self
        for key, child in children:
            yield from child.scalars((*path, key))
