"""Can the cluster ever give what the recipe asks for? By what its nodes have, not by what is free."""

from collections.abc import Mapping, Sequence

from rlpipe.runtime.check import Check, fail, ok, warn
from rlpipe.runtime.preflight.nodes import ClusterNode, Growth, has_gpus, own_machine
from rlpipe.runtime.preflight.wanted import Demand
from rlpipe.runtime.reservation import Bundle, shown

NAME = "resources"


def check_resources(
    moments: Sequence[Sequence[Demand]], nodes: Sequence[ClusterNode], growths: Sequence[Growth] = (),
    waits: bool = False,
) -> Check:  # fmt: skip
    """Each moment alone: first every role by itself, then all of it side by side. What is lacking is no failure of a
    run that `waits` for nodes."""
    found, gpus = _with(nodes, growths), has_gpus(nodes) or any(one.resources.get("GPU") for one in growths)
    if own_machine(nodes):  # there CPU shares are made to fit
        found = [ClusterNode(n.id, n.name, {**n.resources, "CPU": _ENOUGH}, n.driver) for n in found]
    misfits = [misfit for moment in moments for misfit in _misfits(moment, found, gpus)]
    if misfits:
        details, fixes = zip(*dict.fromkeys(misfits), strict=True)
        return (warn if waits else fail)(
            NAME, "\n".join([*details, *_has(nodes, growths)]), "; ".join(dict.fromkeys(fixes))
        )
    for moment in moments:
        if not _packed([demand.bundle(gpus) for demand in moment for _ in range(demand.count)], found):
            roles = ", ".join(f"{demand.count} x {demand.role}" for demand in moment)
            detail = f"no way was found to lay {roles} side by side on the nodes\n" + "\n".join(_has(nodes, growths))
            return warn(NAME, detail, "lower a role's resources or count, or add a node, should the start time out")
    return ok(NAME, f"{len(nodes)} node{'s' * (len(nodes) > 1)} can give what the recipe asks for")


def _misfits(moment: Sequence[Demand], nodes: Sequence[ClusterNode], gpus: bool) -> list[tuple[str, str]]:
    """What can never be, each with what to do about it."""
    alone = [misfit for demand in moment if (misfit := _alone(demand, nodes, gpus))]
    return alone or _together(moment, nodes, gpus)


def _alone(demand: Demand, nodes: Sequence[ClusterNode], gpus: bool) -> tuple[str, str] | None:
    bundle = demand.bundle(gpus)
    room = sum(node.holds(bundle) for node in nodes)
    if room >= demand.count:
        return None
    asks = f"{demand.role}: {demand.count} x ({shown(bundle)}) asked for by {demand.key}"
    if room:
        return f"{asks}; the nodes have room for {room}", f"lower the count in {demand.key}, or add nodes"
    return f"{asks}; no node has that much", f"lower {demand.key}.resources, or add a node that has it"


def _together(moment: Sequence[Demand], nodes: Sequence[ClusterNode], gpus: bool) -> list[tuple[str, str]]:
    found = []
    for resource in ("CPU", "GPU"):
        asked = sum(demand.bundle(gpus).get(resource, 0) * demand.count for demand in moment)
        total = sum(node.resources.get(resource, 0) for node in nodes)
        if asked > total + 1e-6:
            parts = [d for d in moment if d.bundle(gpus).get(resource)]
            each = " + ".join(f"{d.count} x {d.bundle(gpus)[resource]:g} ({d.role})" for d in parts)
            keys = ", ".join(f"{d.key}.resources" for d in parts)
            found.append((f"{resource}: {each} = {asked:g}; all nodes together have {total:g}", f"lower {keys}"))
    return found


def _packed(bundles: Sequence[Bundle], nodes: Sequence[ClusterNode]) -> bool:
    """Whether the largest first, each into the node that it leaves the least of, fits them all."""
    free = [dict(node.resources) for node in nodes]
    for bundle in sorted(bundles, key=lambda one: (one.get("GPU", 0), one["CPU"]), reverse=True):
        into = min((node for node in free if _fits(bundle, node)), key=_left, default=None)
        if into is None:
            return False
        for key, want in bundle.items():
            into[key] -= want
    return True


def _left(free: Mapping[str, float]) -> tuple[float, float]:
    return free.get("GPU", 0), free.get("CPU", 0)


def _fits(bundle: Bundle, free: Mapping[str, float]) -> bool:
    return all(free.get(key, 0) + 1e-6 >= want for key, want in bundle.items())


_ENOUGH = 1e9

MOST_GROWN = 1000
"""Nodes of a kind that an autoscaler may add without a limit."""


def _with(nodes: Sequence[ClusterNode], growths: Sequence[Growth]) -> list[ClusterNode]:
    """Also the nodes that may come."""
    coming = [
        ClusterNode(f"{one.name}-{i}", one.name, one.resources)
        for one in growths
        for i in range(one.most if 0 < one.most < MOST_GROWN else MOST_GROWN)
    ]
    return [*nodes, *coming]


def _has(nodes: Sequence[ClusterNode], growths: Sequence[Growth]) -> list[str]:
    there = [f"  {node.name}: {shown(dict(node.resources))}" for node in nodes]
    coming = [f"  up to {g.most} more of {g.name}: {shown(dict(g.resources))}" for g in growths]
    return ["what there is, in all:", *there, *coming]
