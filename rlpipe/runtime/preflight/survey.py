"""All checks of a cluster, side by side on its nodes, under one deadline."""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from uuid import uuid4

from rlpipe.runtime.check import Check, skip
from rlpipe.runtime.preflight import agreement, gpus, places, talking
from rlpipe.runtime.preflight.failed import PreflightFailed
from rlpipe.runtime.preflight.look import Seen, Task, fingerprint, free_bytes, mark, unreadable, unwritable, versions
from rlpipe.runtime.preflight.nodes import ClusterNode, alive, growths, has_gpus, hosts, own_machine
from rlpipe.runtime.preflight.probes import Probes
from rlpipe.runtime.preflight.resources import check_resources
from rlpipe.runtime.preflight.wanted import Wanted

Tell = Callable[[Check, float], None]
"""Takes each finding, and the seconds that it took."""
_GPU_SECONDS = 30.0
"""For a GPU to be given, and torch to be imported: others may have all of them."""
_TIDY_SECONDS = 5.0
DRIVER = ClusterNode("driver", "the driver, which is this process", {})
OWN = "this run's own Ray on this machine: its processes are started from this environment"


def survey(wanted: Wanted, tell: Tell) -> list[Check]:
    """Every finding, each told as soon as it is there. Raises `PreflightFailed` at the end, if one of them is a
    failure."""
    found: list[Check] = []
    since = time.monotonic()
    with contextlib.closing(_Survey(wanted)) as here:
        for check in here.checks():
            tell(check, time.monotonic() - since)
            since = time.monotonic()
            found.append(check)
    if any(check.status == "fail" for check in found):
        raise PreflightFailed(found)
    return found


class _Survey:
    def __init__(self, wanted: Wanted) -> None:
        self._wanted, self._until = wanted, time.monotonic() + wanted.seconds
        self._nodes = alive()
        self._own = own_machine(self._nodes)
        self._hosts = hosts(self._nodes, wanted.demands)
        self._task = Task(wanted.models, str(wanted.run_dir), uuid4().hex, bool(self._gpu_nodes))
        self._unwritable = unwritable(mark(self._task.run_dir, "driver"), self._task.token)
        self._probes = Probes([] if self._own else self._nodes, self._until)
        self._on_gpus: Probes | None = None
        self._well = True
        """Whether all nodes answer and reach each other."""

    def checks(self) -> Iterator[Check]:
        wanted = self._wanted
        yield check_resources(wanted.moments, self._nodes, growths(), wanted.waits)
        yield places.check_files(wanted.files)
        yield places.check_disk(free_bytes(self._task.run_dir), wanted.rooms, wanted.copied_to)
        yield from [skip(agreement.NAME, OWN), skip(talking.PORTS, OWN)] if self._own else self._across()
        yield self._run_dir()
        yield self._models()
        yield self._gpus()
        yield self._handshake()

    def _across(self) -> Iterator[Check]:
        seen = self._seen
        yield talking.check_answers(self._nodes, self._probes.silent)
        found = {DRIVER: versions()} | {node: one.versions for node, one in seen.items()}
        yield agreement.check_versions(found, self._hosts)
        ports = talking.check_ports(self._probes, seen)
        self._well = ports.status == "ok" and not self._probes.silent
        yield ports

    @cached_property
    def _seen(self) -> dict[ClusterNode, Seen]:
        """By all nodes that answer. What they have written is there until `close`."""
        return self._probes.ask(lambda node, actor: actor.look.remote(self._task))

    @property
    def _seen_by_hosts(self) -> dict[ClusterNode, Seen]:
        return {node: seen for node, seen in self._seen.items() if node in self._hosts}

    def _run_dir(self) -> Check:
        seen, task = self._seen_by_hosts, self._task
        arrived = {node.id for node in seen if not unreadable(mark(task.run_dir, node.id), task.token)}
        return places.check_run_dir(task.run_dir, self._wanted.copied_to, self._unwritable, seen, arrived)

    def _models(self) -> Check:
        here = {key: fingerprint(path) for key, path in self._wanted.models.items()}
        return places.check_models(self._wanted.models, here, self._seen_by_hosts)

    @property
    def _gpu_nodes(self) -> list[ClusterNode]:
        """Those on which something of the run reserves one."""
        there = has_gpus(self._nodes)
        asking = [demand for demand in self._wanted.demands if demand.bundle(there).get("GPU")]
        return [node for node in hosts(self._nodes, asking) if node.resources.get("GPU")]

    def _gpus(self) -> Check:
        nodes = self._gpu_nodes
        if not nodes:
            return gpus.check_gpus([], {}, {}, {})
        self._on_gpus = Probes(nodes, self._until, gpus=1)
        seen = self._on_gpus.ask(lambda node, actor: actor.gpu.remote(), _GPU_SECONDS)
        listed = {node.id: one.gpus for node, one in self._seen.items()}
        return gpus.check_gpus(nodes, seen, listed, self._on_gpus.silent)

    def _handshake(self) -> Check:
        training = [demand for demand in self._wanted.demands if demand.trains and demand.count > 1]
        if self._own or not training:
            return skip(talking.HANDSHAKE, OWN if training else "no training role has several ranks")
        if not self._well:
            return skip(talking.HANDSHAKE, "not tried, as nodes do not answer or do not reach each other")
        with_gpus = any(demand.bundle(has_gpus(self._nodes)).get("GPU") for demand in training)
        probes = self._on_gpus if with_gpus and self._on_gpus else self._probes
        return talking.check_handshake(probes.among(hosts(self._nodes, training)))

    def close(self) -> None:
        """Remove what was written, and end the probes."""
        self._probes.ask(lambda node, actor: actor.tidy.remote(self._task), _TIDY_SECONDS)
        for node in ("driver", *(node.id for node in self._nodes)):
            with contextlib.suppress(OSError):
                mark(self._task.run_dir, node).unlink(missing_ok=True)
        for probes in (self._probes, self._on_gpus):
            if probes is not None:
                probes.end()
