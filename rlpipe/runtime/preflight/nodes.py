"""The nodes of the cluster that this process is connected to, as Ray knows them."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from rlpipe.runtime.preflight.wanted import Demand
from rlpipe.runtime.reservation import OWN_MACHINE, Bundle


@dataclass(frozen=True, slots=True, eq=False)
class ClusterNode:
    """One that is alive."""

    id: str
    name: str
    """Its address, and its host's name where several nodes do not have the same one."""
    resources: Mapping[str, float]
    """All it has, not what is free of it."""
    driver: bool = False
    """Whether this process runs there."""

    def holds(self, bundle: Bundle) -> int:
        """How many such processes have room there, if nothing else is on it."""
        return int(min((self.resources.get(key, 0) + 1e-6) // want for key, want in bundle.items() if want))


@dataclass(frozen=True, slots=True)
class Growth:
    """A kind of node that an autoscaler may add."""

    name: str
    resources: Mapping[str, float]
    most: int


def alive() -> list[ClusterNode]:
    """Every node, that of the driver first."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    hosts = {node["NodeManagerHostname"] for node in nodes}
    found = [_node(node, node["NodeID"] == here, len(hosts) > 1) for node in nodes]
    return sorted(found, key=lambda node: (not node.driver, node.name))


def _node(node: dict, driver: bool, told_apart: bool) -> ClusterNode:
    address, host = node["NodeManagerAddress"], node["NodeManagerHostname"]
    name = f"{address} ({host})" if told_apart else f"{address}, node {node['NodeID'][:6]}"
    return ClusterNode(node["NodeID"], name, node["Resources"], driver)


def own_machine(nodes: Sequence[ClusterNode]) -> bool:
    """Whether it is the Ray that this run has started for itself."""
    return len(nodes) == 1 and OWN_MACHINE in nodes[0].resources


def hosts(nodes: Sequence[ClusterNode], demands: Sequence[Demand]) -> list[ClusterNode]:
    """Nodes on which a process of the run may come to be."""
    gpus = has_gpus(nodes)
    return [node for node in nodes if any(node.holds(demand.bundle(gpus)) for demand in demands)]


def has_gpus(nodes: Sequence[ClusterNode]) -> bool:
    return any(node.resources.get("GPU") for node in nodes)


def growths() -> list[Growth]:
    """What an autoscaler that told Ray of its configuration may add; nothing where there is none."""
    with contextlib.suppress(Exception):  # Ray has no public call for it; without an answer the nodes are what counts
        config = ray._private.state.state.get_cluster_config()
        groups = config.node_group_configs if config is not None else ()
        return [Growth(group.name, dict(group.resources), group.max_count) for group in groups if group.max_count]
    return []
