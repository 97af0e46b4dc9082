"""Where the processes of a run are: each has its bundle of a placement group.

Ray places the lost bundles of a group anew all together or not at all. So a process that can be replaced alone has a
group of its own: with room for one of two, one of them goes on. Those that hang together have one group for all. A
bundle is never divided: what one process reserves is on one node. Processes that share GPUs have one bundle together,
with the same GPUs for all of them.

A group that has no place yet is what Ray's autoscaler calls demand: it starts nodes for it, where there is one.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from rlpipe.runtime.reservation import Bundle, added, bundle, fitted, shown
from rlpipe.runtime.roles import PlacementError, RoleSpec

_PARTING_SECONDS = 10.0
"""Within this what was reserved as one is there in parts, or somebody else was quicker."""
_RELEASE_SECONDS = 3.0
"""Within this Ray counts as free what was given back, unless somebody else has it."""
_AT_ONCE_SECONDS = 5.0
"""Within this Ray has placed what there is room for; a run that can start with less waits no longer for all of it."""


class Place:
    """A process's bundle, and what it takes of it."""

    def __init__(self, group: PlacementGroup, index: int, takes: Bundle, given: bool = True) -> None:
        """`given`: whether there was room for it when the run began."""
        self.group, self.index, self.takes, self.given = group, index, takes, given
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
        node = _nodes(self.group)[self.index]
        return node if node in _alive() else ""

    def lacking(self) -> str:
        """What is waited for when its node is gone and no other has room for what is lost of its group, or there was
        none yet; else nothing. (Ray knows some 15 s after the last word of a node that it is gone.)"""
        if self._stepped_back:
            return f"room for {shown(self.reserved)}, after the training roles, which have none. {cluster_has()}"
        table = placement_group_table(self.group)
        if table["state"] == "CREATED":
            return ""
        alive = _alive()
        lost = [table["bundles"][i] for i, node in table["bundles_to_node_id"].items() if node not in alive]
        asked = " and ".join(map(shown, lost)) or shown(self.takes)
        return f"room for {asked}. {cluster_has()}"


@dataclass(frozen=True, slots=True)
class _Process:
    """One that needs a place: the `index`-th of a role's."""

    spec: RoleSpec
    index: int

    @property
    def wants(self) -> Bundle:
        wanted = bundle(self.spec.resources, self.spec.gpus)
        return wanted if self.spec.beside is None else {"CPU": wanted["CPU"]}


Crew = tuple[_Process, ...]
"""Processes that have one bundle together."""


@dataclass(frozen=True, slots=True)
class _Set:
    """Crews that are placed together, by their numbers among all of the run."""

    members: list[int]
    spread: bool
    may_wait: bool


@dataclass(frozen=True, slots=True)
class _Room:
    """Of a crew."""

    group: PlacementGroup
    index: int
    given: bool = True

    def give_back(self) -> None:
        remove_placement_group(self.group)


def reserve(roles: Sequence[RoleSpec], seconds: float) -> dict[str, list[Place]]:
    """A place for each process of the roles that have their own, by role. Those beyond a role's `at_least` may be
    without room: they have places that are not `given` yet. Raises `PlacementError`."""
    crews = _crews(roles)
    fitting = iter(fitted([process.wants for crew in crews for process in crew]))
    takes = [[next(fitting) for _ in crew] for crew in crews]
    rooms = _rooms(_sets(crews), [added(each) for each in takes], seconds)
    if rooms is None:
        raise PlacementError(not_given(roles, seconds))
    places = {
        (process.spec.name, process.index): Place(rooms[i].group, rooms[i].index, taken, rooms[i].given)
        for i, crew in enumerate(crews)
        for process, taken in zip(crew, takes[i], strict=True)
    }
    return {spec.name: [places[spec.name, i] for i in range(spec.count)] for spec in roles if spec.shares is None}


def _crews(roles: Sequence[RoleSpec]) -> list[Crew]:
    """Whoever lives beside others comes after them in their crew."""
    guests = {spec.beside: spec for spec in roles if spec.beside is not None}
    crews: list[Crew] = []
    for spec in roles:
        if spec.shares is None and spec.beside is None:
            crews += _crewed(spec, guests[spec.name]) if spec.name in guests else _alone(spec)
    return crews


def _alone(spec: RoleSpec) -> list[Crew]:
    return [(_Process(spec, i),) for i in range(spec.count)]


def _crewed(hosts: RoleSpec, guest: RoleSpec) -> list[Crew]:
    return [
        (*(_Process(hosts, seat) for seat in beside(i, hosts.count, guest.count)), _Process(guest, i))
        for i in range(guest.count)
    ]


def beside(index: int, hosts: int, guests: int) -> range:
    """Which of `hosts` processes the `index`-th of `guests` lives beside."""
    if hosts % guests:
        raise ValueError(f"{guests} processes cannot live beside {hosts}, each with as many as the others")
    each = hosts // guests
    return range(index * each, (index + 1) * each)


def _rooms(sets: Sequence[_Set], bundles: Sequence[Bundle], seconds: float) -> dict[int, _Room] | None:
    """By crew. None if there is too little within so long."""
    until = time.monotonic() + seconds
    at_once = min(seconds / 2, _AT_ONCE_SECONDS) if any(s.may_wait for s in sets) else seconds
    rooms = _placed(sets, bundles, at_once)
    if rooms is not None:
        return rooms
    rooms = _placed([s for s in sets if not s.may_wait], bundles, until - time.monotonic())
    if rooms is None:
        return None
    with ExitStack() as given_back:
        for room in rooms.values():
            given_back.callback(room.give_back)
        rooms |= _waiting([s for s in sets if s.may_wait], bundles, given_back)
        given_back.pop_all()
    return rooms


def _sets(crews: Sequence[Crew]) -> list[_Set]:
    first = [(crew[0].spec, crew[0].index) for crew in crews]
    alone = [
        _Set([i], spec.nodes == "spread", spec.at_least is not None and n >= spec.at_least)
        for i, (spec, n) in enumerate(first)
        if spec.again is not None
    ]
    together = [i for i, (spec, _) in enumerate(first) if spec.again is None]
    return alone + ([_Set(together, spread=False, may_wait=False)] if together else [])


def _waiting(sets: Sequence[_Set], bundles: Sequence[Bundle], given_back: ExitStack) -> dict[int, _Room]:
    """Asked for one by one; there may be room for some of them now."""
    groups = {i: _held(given_back, _group([bundles[i]])) for s in sets for i in s.members}
    until = time.monotonic() + _AT_ONCE_SECONDS / 2
    while not all(map(_is_there, groups.values())) and time.monotonic() < until:
        time.sleep(0.1)
    return {i: _Room(group, 0, _is_there(group)) for i, group in groups.items()}


def _placed(sets: Sequence[_Set], bundles: Sequence[Bundle], seconds: float) -> dict[int, _Room] | None:
    """All or nothing: they are waited for as one group, so that of two runs neither holds what the other one lacks."""
    until, wanted = time.monotonic() + seconds, [bundles[i] for s in sets for i in s.members]
    while (left := until - time.monotonic()) > 0:
        with ExitStack() as given_back:  # whatever ends this, Ctrl-C among it
            whole = _held(given_back, placement_group(wanted, strategy="PACK"))
            if not whole.wait(math.ceil(left)):
                return None
            groups = [whole] if len(sets) == 1 else _parted(whole, sets, bundles, given_back)
            if groups is not None:
                given_back.pop_all()
                found = zip(sets, groups, strict=True)
                return {i: _Room(group, n) for s, group in found for n, i in enumerate(s.members)}
    return None


def _held(given_back: ExitStack, group: PlacementGroup) -> PlacementGroup:
    given_back.callback(remove_placement_group, group)
    return group


def _parted(
    whole: PlacementGroup, sets: Sequence[_Set], bundles: Sequence[Bundle], given_back: ExitStack
) -> list[PlacementGroup] | None:
    """Groups of their own in its place: on the same nodes, but those that are to be spread, which Ray spreads over what
    the others leave. None if somebody else took the room in between."""
    found = iter(_nodes(whole))
    where = [[next(found) for _ in s.members] for s in sets]
    _release(whole)
    of = [[bundles[i] for i in s.members] for s in sets]
    parts = {n: _held(given_back, _group(of[n], where[n][0])) for n, s in enumerate(sets) if not s.spread}
    evenly = [n for n, s in enumerate(sets) if s.spread]
    if evenly and (nodes := _spread([of[n][0] for n in evenly], parts.values(), given_back)):
        parts |= {n: _held(given_back, _group(of[n], node)) for n, node in zip(evenly, nodes, strict=True)}
    there = len(parts) == len(sets) and _there(parts.values())
    return [parts[n] for n in range(len(sets))] if there else None


def _spread(bundles: list[Bundle], others: Iterable[PlacementGroup], given_back: ExitStack) -> list[str]:
    """The nodes that Ray spreads these over, beside the others; none if there is no room for all."""
    whole = _held(given_back, placement_group(bundles, strategy="SPREAD"))
    nodes = _nodes(whole) if _there([*others, whole]) else []
    _release(whole)
    return nodes


def _release(group: PlacementGroup) -> None:
    """Remove a group, and wait until Ray counts its room as free: what is asked for sooner goes to another node, also
    if it is asked for on this one."""
    before, held = ray.available_resources(), Counter()
    for reserved in group.bundle_specs:
        held.update(reserved)
    remove_placement_group(group)
    until = time.monotonic() + _RELEASE_SECONDS
    while time.monotonic() < until:
        free = ray.available_resources()
        if all(free.get(kind, 0.0) >= before.get(kind, 0.0) + amount - 1e-3 for kind, amount in held.items()):
            return
        time.sleep(0.02)


def _is_there(group: PlacementGroup) -> bool:
    return placement_group_table(group)["state"] == "CREATED"


def _there(groups: Iterable[PlacementGroup]) -> bool:
    until = time.monotonic() + _PARTING_SECONDS
    return all(group.wait(max(1, math.ceil(until - time.monotonic()))) for group in groups)


def _group(bundles: list[Bundle], node: str | None = None) -> PlacementGroup:
    if len(bundles) > 1:
        return placement_group(bundles, strategy="PACK")
    return placement_group(bundles, strategy="STRICT_PACK", _soft_target_node_id=node)


def _nodes(group: PlacementGroup) -> list[str]:
    """The ids of the nodes that its bundles are on, or were."""
    found = placement_group_table(group)["bundles_to_node_id"]
    return [found.get(i, "") for i in range(group.bundle_count)]


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def shown_node(node_id: str) -> str:
    """Its address and the beginning of its id, as one machine may be several nodes; empty if Ray does not know it."""
    address = next((node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == node_id), "")
    return address and f"{address} ({node_id[:8]})"


def not_given(roles: Sequence[RoleSpec], seconds: float) -> str:
    """What was asked for, what there is, and which lines of the recipe say so."""
    return "\n".join([
        f"The cluster did not give the resources of this recipe within {seconds:g} s (deadlines.placement). Asked for:",
        *(f"  {spec.name}: {_asked(spec)}" for spec in roles),
        f"{cluster_has()} Lower those lines, or add nodes; where nodes are started on demand, raise "
        "deadlines.placement to the time that takes.",
        *(_with_fewer(spec) for spec in roles if spec.recipe_key == "rollout"),
    ])  # fmt: skip


def _with_fewer(spec: RoleSpec) -> str:
    least = spec.count if spec.at_least is None else spec.at_least
    return f"{least} of {spec.count} engines must have room for the run to start (rollout.min_engines)."


def cluster_has() -> str:
    return f"The cluster has {shown(ray.cluster_resources())}, of which free: {shown(ray.available_resources())}."


def _asked(spec: RoleSpec) -> str:
    if spec.shares is not None:
        return f"nothing of its own, in the processes of {spec.shares}"
    where = f"{spec.recipe_key}.resources and the count in {spec.recipe_key}"
    on = f", on the GPUs of {spec.beside}" if spec.beside is not None else ""
    return f"{spec.count} x {_Process(spec, 0).wants}{on}   (recipe: {where})"
