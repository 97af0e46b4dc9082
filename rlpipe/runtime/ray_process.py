"""A process of a role: a Ray actor at its place in a placement group, where another one can take over."""

import contextlib
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlpipe.runtime.placing import Place, shown_node
from rlpipe.runtime.ray_heartbeat import Calls, Heartbeat
from rlpipe.runtime.ray_host import RemoteHost
from rlpipe.runtime.roles import RoleSpec
from rlpipe.runtime.threads import threads_of


class RayProcess:
    """See above. `host` is the actor that is there now, `heartbeat` and `calls` are what is known of it, `building` is
    the last role that it was told to build."""

    def __init__(self, spec: RoleSpec, place: Place) -> None:
        """Of a place that is still waited for, nothing is started before `restart`."""
        self._spec, self.place = spec, place
        self.node = self.address = ""
        """Of the node it was started on: its id, and where it is for people."""
        self.building: ray.ObjectRef[None] | None = None
        self.begun = place.given
        if self.begun:
            self._begin()

    def restart(self) -> None:
        """Another actor in the same bundle, which Ray places anew if its node is gone."""
        self.end()
        self._begin()

    def end(self) -> None:
        """Also one that is stopped (SIGSTOP) or computes: Ray asks first, and kills after some 5 s."""
        if not self.begun:
            return
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self.host)

    def moved(self) -> bool:
        """Whether the node that it was started on is gone, or its place there. (Ray learns late of a node that is, and
        may start one there still.)"""
        return not self.node or self.place.node() != self.node

    def make_room(self) -> None:
        """Give the place up until `place.ask_again`, unless a role has been built there."""
        built = self.building is not None and ray.wait([self.building], timeout=0, fetch_local=False)[0]
        if self.moved() or not built:
            self.end()
            self.place.step_back()

    def _begin(self) -> None:
        self.node, self.begun = self.place.node(), True
        self.address = shown_node(self.node)
        self.building = None
        self.host = self._start()
        self.heartbeat, self.calls = Heartbeat(self.host.pulse.remote), Calls()

    def _start(self) -> Any:
        takes = self.place.takes
        return RemoteHost.options(
            num_cpus=takes["CPU"],
            num_gpus=takes.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(self.place.group, self.place.index),
            runtime_env={"env_vars": _environment(self._spec)},
        ).remote()


def _environment(spec: RoleSpec) -> dict[str, str]:
    """What must stand before a process imports torch. Its threads are set again once its node's processes are known."""
    ours = {
        # Ray sets it to the reserved CPUs, here a fraction of one; the recipe's thread count is what counts.
        "OMP_NUM_THREADS": str(threads_of(spec.threads, sharing=1)),
        # Waiting threads sleep: spinning ones slow a shared node down several times over, and the roles of a step take
        # turns anyway.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return ours | spec.environment
