"""A Ray cluster of several nodes on this machine, whose nodes are lost when a test says so."""

import os
import signal

import local_ray
import psutil
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

SOON = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""Ray calls a node lost after three questions without an answer: 1.5 s for a process that is gone, not some 15 s."""
STORE_BYTES = 80 * 1024**2


class Nodes:
    """A head without CPUs, for the driver, and workers of one CPU each."""

    def __init__(self, system: dict[str, int] | None = SOON) -> None:
        """`system`: settings of Ray's own."""
        self._others = ray.is_initialized()
        if self._others:
            ray.shutdown()
        local_ray.prepare()
        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head | {"_system_config": system or {}})
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="error")

    def join(self, count: int = 1) -> list[str]:
        """So many nodes more; returns their ids."""
        return [self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES).node_id for _ in range(count)]

    def have(self, count: int) -> None:
        """Just so many workers."""
        workers = [node.node_id for node in self._cluster.worker_nodes]
        for node_id in workers[count:]:
            self.lose(node_id)
        self.join(max(0, count - len(workers)))

    def lose(self, node_id: str) -> None:
        """Ungracefully: all that Ray runs there is killed at once."""
        self._cluster.remove_node(self._node(node_id), allow_graceful=False)

    def kill_raylet(self, node_id: str) -> int:
        """SIGKILL to the process that is the node for Ray, and to no other; returns its id."""
        node = self._node(node_id)
        [raylet] = node.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        raylet.process.wait()
        self._cluster.worker_nodes.remove(node)
        return raylet.process.pid

    def _node(self, node_id: str):
        return next(node for node in self._cluster.worker_nodes if node.node_id == node_id)

    def close(self) -> None:
        """The Ray that was there before is there again, as a session's other tests expect it."""
        ray.shutdown()
        self._cluster.shutdown()
        if self._others:
            local_ray.start()


def node_of(handle) -> str:
    """The id of the node that a role's process has its place on; empty if it has none."""
    place = handle._process.place
    if place.lacking():
        return ""
    return placement_group_table(place.group)["bundles_to_node_id"][place.index]


def lives(process: int) -> bool:
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE
