"""Roles as Ray actors: `rlpipe run`, on this machine or on the cluster that RAY_ADDRESS names."""

import contextlib
import os
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlpipe.recipe.run import Deadlines
from rlpipe.runtime.handle import Handle, Within, results
from rlpipe.runtime.ray_host import RemoteHost
from rlpipe.runtime.ray_pending import RayHandle, RayPending
from rlpipe.runtime.roles import PlacementError, RoleSpec, Seat

Bundle = dict[str, float]


def connect() -> None:
    """Join the cluster in RAY_ADDRESS, or start Ray on this machine for the length of this process."""
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    local = {"include_dashboard": False} if address == "local" else {}
    # Role processes say what matters through the driver; their raw output stays in Ray's session logs.
    ray.init(address=address, log_to_driver="RLPIPE_ACTOR_LOGS" in os.environ, logging_level="error", **local)


class RayRuntime:
    """One placement group per set of roles; each role's processes are Ray actors in its bundles."""

    def __init__(self, deadlines: Deadlines) -> None:
        connect()
        self._deadlines = deadlines
        self._hosts: list[Any] = []
        self._group: PlacementGroup | None = None

    def start(self, roles: list[RoleSpec]) -> dict[str, list[Handle[Any]]]:
        seats = [spec for spec in roles for _ in range(spec.count)]
        bundles = [_bundle(spec) for spec in seats]
        self._group = _reserve(bundles, roles, self._deadlines.placement)
        hosts = [_host(spec, self._group, i) for i, spec in enumerate(seats)]
        self._hosts += hosts
        by_role = _by_role(roles, hosts)
        self._build(roles, by_role)
        return {name: [RayHandle(_seat_name(name, i, len(h)), x) for i, x in enumerate(h)] for name, h in by_role.items()}

    def _build(self, roles: list[RoleSpec], hosts: dict[str, list[Any]]) -> None:
        within = Within("start", self._deadlines.start)
        seats = {spec.name: _seats(spec.name, hosts[spec.name], within) for spec in roles}
        pendings = [
            _call_host(f"{spec.name}[{seat.index}]", "start", host, host.build, within, spec, seat)
            for spec in roles
            for seat, host in zip(seats[spec.name], hosts[spec.name], strict=True)
        ]
        results(pendings)

    def stop(self) -> None:
        for host in self._hosts:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(host)
        self._hosts = []
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def close(self) -> None:
        self.stop()
        ray.shutdown()


def _call_host(name: str, what: str, host: Any, build: Any, within: Within, spec: RoleSpec, seat: Seat) -> RayPending[None]:
    return RayPending(host, name, what, build.remote(spec.role, spec.arguments(seat), spec.threads), within)


def _seat_name(role: str, index: int, count: int) -> str:
    return role if count == 1 else f"{role}[{index}]"


def _by_role(roles: list[RoleSpec], hosts: list[Any]) -> dict[str, list[Any]]:
    rest = iter(hosts)
    return {spec.name: [next(rest) for _ in range(spec.count)] for spec in roles}


def _seats(name: str, hosts: list[Any], within: Within) -> list[Seat]:
    places = results([RayPending(h, f"{name}[{i}]", "its process start", h.meeting_point.remote(), within) for i, h in enumerate(hosts)])
    _, address, port = places[0]
    nodes = [node for node, _, _ in places]
    return [Seat(i, len(hosts), nodes[:i].count(nodes[i]), address, port) for i in range(len(hosts))]


def _host(spec: RoleSpec, group: PlacementGroup, index: int) -> Any:
    bundle = _bundle(spec)
    return RemoteHost.options(
        num_cpus=bundle["CPU"],
        num_gpus=bundle.get("GPU", 0),
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
        runtime_env={"env_vars": _environment(spec)},
    ).remote()


def _environment(spec: RoleSpec) -> dict[str, str]:
    # Ray sets OMP_NUM_THREADS to the reserved CPUs, here a fraction of one; the recipe's thread count is what counts.
    threads = str(spec.threads or os.cpu_count() or 1)
    return {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"} | spec.environment


def _bundle(spec: RoleSpec) -> Bundle:
    gpus = spec.resources.gpus
    if gpus == "auto":
        gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
    return {"CPU": spec.resources.cpus} | ({"GPU": float(gpus)} if gpus else {})


def _reserve(bundles: list[Bundle], roles: list[RoleSpec], seconds: float) -> PlacementGroup:
    group = placement_group(bundles, strategy="PACK")
    if not group.wait(seconds):
        remove_placement_group(group)
        raise PlacementError(_placement_message(roles, seconds))
    return group


def _placement_message(roles: list[RoleSpec], seconds: float) -> str:
    lines = [
        f"  {spec.name}: {spec.count} x {_bundle(spec)}   (recipe: {spec.recipe_key}.resources and the count in {spec.recipe_key})"
        for spec in roles
    ]
    total, free = ray.cluster_resources(), ray.available_resources()
    return "\n".join(
        [f"The cluster did not give the resources of this recipe within {seconds:g} s (deadlines.placement). Asked for:"]
        + lines
        + [f"The cluster has {_shown(total)}, of which free: {_shown(free)}. Lower those lines, or add nodes."]
    )


def _shown(resources: dict[str, float]) -> str:
    return ", ".join(f"{key} {resources.get(key, 0):g}" for key in ("CPU", "GPU"))
