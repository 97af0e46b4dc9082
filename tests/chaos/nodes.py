"""A Ray cluster of several nodes on this machine, whose nodes are lost when a test says so."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import local_ray
import psutil
import ray
import warm
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

SOON = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""Ray calls a node lost after three questions without an answer: 1.5 s for a process that is gone, not some 15 s."""
STORE_BYTES = 80 * 1024**2


class Nodes:
    """A head without CPUs, for the driver, and workers of one CPU each."""

    def __init__(self, system: dict[str, int] | None = SOON, address: str | None = None, forks: bool = False) -> None:
        """`system`: settings of Ray's own; `address`: of the head, where nodes in other network namespaces find it.
        `forks`: workers are forked from a process that has the imports behind it."""
        self._forks = warm.shared().forks_workers if forks else contextlib.nullcontext
        self._others = ray.is_initialized()
        if self._others:
            ray.shutdown()
        local_ray.prepare()
        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        head |= {"_system_config": system or {}} | ({"node_ip_address": address} if address else {})
        with self._forks():
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._elsewhere: list[subprocess.Popen] = []
        where = {"_node_ip_address": address} if address else {}
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="error", **where)

    def join(self, count: int = 1, cpus: int = 1) -> list[str]:
        """So many nodes more; returns their ids."""
        room = {"num_cpus": cpus, "object_store_memory": STORE_BYTES}
        with self._forks():
            return [self._cluster.add_node(**room).node_id for _ in range(count)]

    def have(self, count: int) -> None:
        """Just so many workers, as far as Ray knows, too."""
        workers = [node.node_id for node in self._cluster.worker_nodes]
        for node_id in workers[count:]:
            self.lose(node_id)
        ends = time.monotonic() + 60
        while any(node["Alive"] and node["NodeID"] in workers[count:] for node in ray.nodes()):
            assert time.monotonic() < ends, "Ray does not notice that a node is gone"
            time.sleep(0.1)
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

    def join_from(self, namespace: str, address: str, **environment: str) -> str:
        """A node in a network namespace; returns its id."""
        return self.join_by(["ip", "netns", "exec", namespace], f"--node-ip-address={address}", **environment)

    def join_by(self, words: list[str], *options: str, **environment: str) -> str:
        """A node whose `ray start` is started by other words, with options and environment of its own."""
        before = {node["NodeID"] for node in ray.nodes()}
        command = [*words, sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command += [f"--address={self._cluster.address}", "--num-cpus=1", f"--object-store-memory={STORE_BYTES}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started = subprocess.Popen([*command, *options], env=os.environ | environment, **quiet)
        self._elsewhere.append(started)
        ends = time.monotonic() + 120
        while not (new := {node["NodeID"] for node in ray.nodes() if node["Alive"]} - before):
            assert time.monotonic() < ends and started.poll() is None, "the node does not join"
            time.sleep(0.2)
        return new.pop()

    def of_raylet(self, process: int) -> str:
        """The id of the worker whose raylet that is."""
        raylets = {node.all_processes["raylet"][0].process.pid: node.node_id for node in self._cluster.worker_nodes}
        return raylets[process]

    def lose_those_elsewhere(self) -> None:
        """What `join_by` and `join_from` have started, and all that Ray runs there."""
        for node in self._elsewhere:
            family = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
            for process in [node, *family]:
                process.kill()
        self._elsewhere = []

    def _node(self, node_id: str):
        return next(node for node in self._cluster.worker_nodes if node.node_id == node_id)

    def close(self) -> None:
        """The Ray that was there before is there again, as a session's other tests expect it."""
        ray.shutdown()
        self.lose_those_elsewhere()
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
