"""What can be found out, for the report of a missed deadline, without waiting for what may hang itself."""

import threading
from collections import Counter
from collections.abc import Sequence

import ray
from ray.exceptions import RayError

from rlpipe.runtime.reservation import shown

_WAIT_SECONDS = 5.0


def answers(asked: Sequence["ray.ObjectRef[str]"]) -> list[str]:
    """What each of several processes says, such as its stacks, or that it does not; after 5 s at most."""
    there = ray.wait(list(asked), num_returns=len(asked), timeout=_WAIT_SECONDS)[0] if asked else []
    return [_answer(ref) if ref in there else "(its process does not answer)" for ref in asked]


def queue(unfinished: Sequence[str]) -> str:
    """A line about the calls of a process that are not finished, in their order."""
    if not unfinished:
        return "No call of its process is unfinished."
    first, *rest = unfinished
    behind = f"; behind it wait {len(rest)}: {', '.join(rest)}" if rest else ", and none waits behind it"
    return f"Its process is at {first}{behind}."


def cluster() -> str:
    """A line about what was asked of the cluster that it has not given, and what is free; after 5 s at most."""
    found: list[str] = []

    def look() -> None:
        try:
            found.append(_cluster())
        except Exception as error:  # whatever it is, it must not take the place of the error that is reported
            found.append(f"What the cluster has not given cannot be found out ({type(error).__name__}: {error}).")

    thread = threading.Thread(target=look, name="cluster-state", daemon=True)
    thread.start()
    thread.join(_WAIT_SECONDS)
    return found[0] if found else f"The cluster's head did not answer within {_WAIT_SECONDS:g} s."


def _cluster() -> str:
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address, timeout=int(_WAIT_SECONDS))
    demands = status.resource_demands
    wanted: Counter[str] = Counter()
    for kind, asked in (("a placement group", demands.placement_group_demand), ("", demands.ray_task_actor_demand)):
        for bundle in (one for demand in asked for one in demand.bundles_by_count):
            wanted[f"{bundle.bundle}" + (f" in {kind}" if kind else "")] += bundle.count
    pending = ", ".join(f"{count} x {what}" for what, count in wanted.items()) or "nothing"
    total, free = ray.cluster_resources(), ray.available_resources()
    return f"The cluster has not given: {pending}. It has {shown(total)}, of which free: {shown(free)}."


def _answer(ref: "ray.ObjectRef[str]") -> str:
    try:
        return ray.get(ref, timeout=_WAIT_SECONDS)
    except RayError as error:
        return f"(its process does not answer: {type(error).__name__})"
