"""Roles as Ray actors: `rlpipe run`, on this machine or on the cluster that RAY_ADDRESS names."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from rlpipe.recipe.run import Deadlines
from rlpipe.runtime.handle import Handle, Within, results
from rlpipe.runtime.ray_handle import RayHandle
from rlpipe.runtime.ray_pending import RayPending
from rlpipe.runtime.ray_process import RayProcess
from rlpipe.runtime.reservation import OWN_MACHINE, Bundle, bundle, fitted, shown
from rlpipe.runtime.roles import PlacementError, RoleSpec, Seat, seats_at


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Joins the cluster in RAY_ADDRESS, or starts Ray on this machine for the length of the block. A process that is
    connected already stays so."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    local = {"include_dashboard": False, "resources": {OWN_MACHINE: 1}} if address == "local" else {}
    # Role processes say what matters through the driver; their raw output stays in Ray's session logs.
    ray.init(address=address, log_to_driver=False, logging_level="error", **local)
    try:
        yield
    finally:
        ray.shutdown()


class RayStarted:
    """Roles whose processes are up and whose constructors run."""

    def __init__(self, deadlines: Deadlines) -> None:
        self.handles: dict[str, list[Handle[Any]]] = {}
        self._deadlines, self._within = deadlines, Within("start", deadlines.start)
        self._processes: dict[str, tuple[RoleSpec, list[RayProcess]]] = {}
        self._builds: list[RayPending[None]] = []

    def add(self, spec: RoleSpec, processes: list[RayProcess]) -> None:
        """Build one role in its processes."""
        self._processes[spec.name] = spec, processes
        self.handles[spec.name] = self._build(spec, processes)

    def restart(self, names: Sequence[str]) -> None:
        """See `Started.restart`."""
        gang = [self._processes[name] for name in names]
        for spec, processes in gang:
            if spec.shares is None:
                for process in processes:
                    process.restart()
        self._builds = []  # an attempt before this one may have left some
        for spec, processes in sorted(gang, key=lambda of: of[0].shares is not None):
            self._build(spec, processes)
        self.ready()

    def _build(self, spec: RoleSpec, processes: list[RayProcess]) -> list[Handle[Any]]:
        names = [spec.name if len(processes) == 1 else f"{spec.name}[{i}]" for i in range(len(processes))]
        handles: list[Handle[Any]] = []
        by_name = dict(zip(names, processes, strict=True))
        for name, seat in zip(names, _seats(names, processes, self._within), strict=True):
            handle = RayHandle(name, by_name, spec, seat.local_count, self._deadlines)
            self._builds.append(handle.build(spec.arguments(seat)))
            handles.append(handle)
        return handles

    def ready(self) -> None:
        builds, self._builds = self._builds, []
        results(builds)


class RayRuntime:
    """On the cluster this process is connected to: one placement group per `start`, with one bundle for each Ray actor;
    an actor hosts a role, and those that share its process."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._processes: list[RayProcess] = []
        self._groups: list[PlacementGroup] = []

    def start(self, roles: list[RoleSpec]) -> RayStarted:
        owners = [spec for spec in roles if spec.shares is None]
        processes = self._placed(owners, roles)
        started = RayStarted(self._deadlines)
        for spec in owners + [spec for spec in roles if spec.shares is not None]:
            started.add(spec, processes[spec.shares or spec.name])
        return started

    def _placed(self, owners: list[RoleSpec], roles: list[RoleSpec]) -> dict[str, list[RayProcess]]:
        """The processes of the roles that have their own, each in its bundle, by role name."""
        seats = [spec for spec in owners for _ in range(spec.count)]
        bundles = fitted([bundle(spec.resources) for spec in seats])
        group = _reserve(bundles, roles, self._deadlines.placement)
        self._groups.append(group)
        processes = [RayProcess(spec, group, i) for i, spec in enumerate(seats)]
        self._processes += processes
        rest = iter(processes)
        return {spec.name: [next(rest) for _ in range(spec.count)] for spec in owners}

    def stop(self) -> None:
        for process in self._processes:
            process.end()
        for group in self._groups:
            remove_placement_group(group)
        self._processes, self._groups = [], []


def _seats(names: list[str], processes: list[RayProcess], within: Within) -> list[Seat]:
    pendings = [
        RayPending(process.host, name, "its process start", process.host.meeting_point.remote(), within)
        for name, process in zip(names, processes, strict=True)
    ]
    return seats_at(results(pendings))


def _reserve(bundles: list[Bundle], roles: list[RoleSpec], seconds: float) -> PlacementGroup:
    group = placement_group(bundles, strategy="PACK")
    if not group.wait(seconds):
        remove_placement_group(group)
        raise PlacementError(_placement_message(roles, seconds))
    return group


def _placement_message(roles: list[RoleSpec], seconds: float) -> str:
    total, free = ray.cluster_resources(), ray.available_resources()
    return "\n".join([
        f"The cluster did not give the resources of this recipe within {seconds:g} s (deadlines.placement). Asked for:",
        *(f"  {spec.name}: {_asked(spec)}" for spec in roles),
        f"The cluster has {shown(total)}, of which free: {shown(free)}. Lower those lines, or add nodes.",
    ])  # fmt: skip


def _asked(spec: RoleSpec) -> str:
    if spec.shares is not None:
        return f"nothing of its own, in the processes of {spec.shares}"
    where = f"{spec.recipe_key}.resources and the count in {spec.recipe_key}"
    return f"{spec.count} x {bundle(spec.resources)}   (recipe: {where})"
