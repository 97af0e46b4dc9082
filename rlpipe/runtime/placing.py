"""Where the processes of a run are: each has its bundle of a placement group.

Ray places the lost bundles of a group anew all together or not at all. So a process that can be replaced alone has a
group of its own: with room for one of two, one of them goes on. Those that hang together have one group for all.
"""

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from rlpipe.runtime.reservation import Bundle, bundle, fitted, shown
from rlpipe.runtime.roles import PlacementError, RoleSpec

_PARTING_SECONDS = 10.0
"""Within this what was reserved as one is there in parts, or somebody else was quicker."""


class Place:
    """A process's bundle."""

    def __init__(self, group: PlacementGroup, index: int) -> None:
        self.group, self.index = group, index
        self.reserved: Bundle = group.bundle_specs[index]
        self._stepped_back = False

    def give_back(self) -> None:
        """Also what others have of its group."""
        remove_placement_group(self.group)

    def step_back(self) -> None:
        """Of a process that has its group alone: leave the room to those who must have it first, and wait."""
        if not self._stepped_back:
            self._stepped_back = True
            remove_placement_group(self.group)

    def ask_again(self) -> None:
        """Those have it; ask for room, if this one has stepped back."""
        if self._stepped_back:
            self.group, self.index = placement_group([self.reserved], strategy="PACK"), 0
            self._stepped_back = False

    def node(self) -> str:
        """The id of the node it is on; empty while it is on none."""
        if self._stepped_back:
            return ""
        table = placement_group_table(self.group)
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        node = table["bundles_to_node_id"].get(self.index, "")
        return node if node in alive else ""

    def lacking(self) -> str:
        """What is waited for when its node is gone and no other has room for what is lost of its group; else nothing.
        (Ray knows some 15 s after the last word of a node that it is gone.)"""
        if self._stepped_back:
            return f"room for {shown(self.reserved)}, after the training roles, which have none. {cluster_has()}"
        table = placement_group_table(self.group)
        if table["state"] == "CREATED":
            return ""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        lost = [table["bundles"][i] for i, node in table["bundles_to_node_id"].items() if node not in alive]
        asked = " and ".join(map(shown, lost)) or shown(self.reserved)
        return f"room for {asked}. {cluster_has()}"


def reserve(roles: Sequence[RoleSpec], seconds: float) -> dict[str, list[Place]]:
    """A place for each process of the roles that have their own, by role. Raises `PlacementError`."""
    seats = [spec for spec in roles if spec.shares is None for _ in range(spec.count)]
    bundles = fitted([bundle(spec.resources) for spec in seats])
    together = [i for i, spec in enumerate(seats) if spec.again is None]
    sets = [[i] for i, spec in enumerate(seats) if spec.again is not None] + ([together] if together else [])
    groups = _reserved([[bundles[i] for i in members] for members in sets], seconds)
    if groups is None:
        raise PlacementError(not_given(roles, seconds))
    places = {i: Place(group, n) for members, group in zip(sets, groups, strict=True) for n, i in enumerate(members)}
    rest = iter(places[i] for i in range(len(seats)))
    return {spec.name: [next(rest) for _ in range(spec.count)] for spec in roles if spec.shares is None}


def _reserved(sets: list[list[Bundle]], seconds: float) -> list[PlacementGroup] | None:
    """All or nothing: they are waited for as one group, so that of two runs neither holds what the other one lacks."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        with ExitStack() as given_back:  # whatever ends this, Ctrl-C among it
            whole = _held(given_back, placement_group([each for bundles in sets for each in bundles], strategy="PACK"))
            if not whole.wait(math.ceil(left)):
                return None
            parts = [whole] if len(sets) == 1 else _parted(whole, sets, given_back)
            if parts is not None:
                given_back.pop_all()
                return parts
    return None


def _held(given_back: ExitStack, group: PlacementGroup) -> PlacementGroup:
    given_back.callback(remove_placement_group, group)
    return group


def _parted(whole: PlacementGroup, sets: list[list[Bundle]], given_back: ExitStack) -> list[PlacementGroup] | None:
    """Groups of their own in its place, on the same nodes; None if somebody else took the room in between."""
    found = placement_group_table(whole)["bundles_to_node_id"]
    nodes = iter(found[i] for i in range(whole.bundle_count))
    where = [[next(nodes) for _ in bundles] for bundles in sets]
    remove_placement_group(whole)
    parts = [_held(given_back, _group(bundles, at)) for bundles, at in zip(sets, where, strict=True)]
    until = time.monotonic() + _PARTING_SECONDS
    there = all(part.wait(max(1, math.ceil(until - time.monotonic()))) for part in parts)
    return parts if there else None


def _group(bundles: list[Bundle], nodes: list[str]) -> PlacementGroup:
    if len(bundles) > 1:
        return placement_group(bundles, strategy="PACK")
    return placement_group(bundles, strategy="STRICT_PACK", _soft_target_node_id=nodes[0])


def not_given(roles: Sequence[RoleSpec], seconds: float) -> str:
    """What was asked for, what there is, and which lines of the recipe say so."""
    return "\n".join([
        f"The cluster did not give the resources of this recipe within {seconds:g} s (deadlines.placement). Asked for:",
        *(f"  {spec.name}: {_asked(spec)}" for spec in roles),
        f"{cluster_has()} Lower those lines, or add nodes.",
    ])  # fmt: skip


def cluster_has() -> str:
    return f"The cluster has {shown(ray.cluster_resources())}, of which free: {shown(ray.available_resources())}."


def _asked(spec: RoleSpec) -> str:
    if spec.shares is not None:
        return f"nothing of its own, in the processes of {spec.shares}"
    where = f"{spec.recipe_key}.resources and the count in {spec.recipe_key}"
    return f"{spec.count} x {bundle(spec.resources)}   (recipe: {where})"
