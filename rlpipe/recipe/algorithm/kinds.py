"""Parts of an algorithm that do not say their kind have their preset's, written in before anything reads the recipe.

So `algorithm.loss.clip_high=0.3` is known to be of `ppo_clip` where sections merge, and where an error is explained.
"""

from collections.abc import Mapping

from pydantic import BaseModel

from rlpipe.recipe.algorithm.presets import PRESETS
from rlpipe.recipe.tree import Node


def with_kinds(algorithm: Node) -> Node:
    """An algorithm's section with the kind of each of its parts; as it is where it names no preset."""
    name = algorithm.child("name")
    preset = PRESETS.get(name.value) if name and isinstance(name.value, str) else None
    return _filled(algorithm, preset.defaults()) if preset else algorithm


def everywhere(root: Node) -> Node:
    """A recipe, or a pipeline of recipes, with the kinds of all algorithms' parts."""
    if not isinstance(root.value, dict):
        return root
    filled = {key: with_kinds(child) if key == "algorithm" else everywhere(child) for key, child in root.value.items()}
    return Node(filled, root.place)


def _filled(section: Node, defaults: Mapping[str, object]) -> Node:
    filled = {key: _part(child, defaults.get(key)) for key, child in section.value.items()}
    return Node(filled, section.place)


def _part(given: Node, default: object) -> Node:
    if not (isinstance(default, BaseModel) and isinstance(given.value, dict)):
        return given
    own = {name: getattr(default, name) for name in type(default).model_fields}
    if "kind" not in own:
        return _filled(given, own)
    kind = given.child("kind") or Node(own["kind"], given.place)
    same = kind.value == own["kind"]
    return _filled(Node({"kind": kind, **given.value}, given.place), own if same else {})
