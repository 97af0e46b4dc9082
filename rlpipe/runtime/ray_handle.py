"""The handle of a role in a Ray actor."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rlpipe.recipe import secrets
from rlpipe.recipe.run import Deadlines
from rlpipe.runtime.handle import Within
from rlpipe.runtime.ray_heartbeat import Watch
from rlpipe.runtime.ray_host import Keys
from rlpipe.runtime.ray_pending import STARTING, RayPending
from rlpipe.runtime.ray_process import RayProcess
from rlpipe.runtime.roles import RoleSpec

T = TypeVar("T")


class RayHandle:
    """One role in one process. `name` is the process's, as messages show it."""

    def __init__(
        self,
        name: str,
        processes: Mapping[str, RayProcess],
        spec: RoleSpec,
        sharing: int,
        deadlines: Deadlines,
        beside: Sequence[RayProcess] = (),
    ) -> None:
        """`processes`: the role's, by the names of their handles. `sharing` is among how many processes of the role its
        node's cores are shared; `beside`, on whose GPUs its process lives."""
        self._beside = beside
        self.name = name
        self._process, self._spec, self._sharing, self._deadlines = processes[name], spec, sharing, deadlines
        self._processes = processes
        # Without `again` they hang together: none comes to an end if one does not go on.
        self._together = {name: self._process} if spec.again is not None else dict(processes)

    @property
    def begun(self) -> bool:
        return self._process.begun

    @property
    def node(self) -> str:
        return self._process.address

    def build(self, arguments: tuple[Any, ...]) -> RayPending[None]:
        """Construct the role; later calls wait for it."""
        host, spec = self._process.host, self._spec
        keys = Keys(spec.secrets, secrets.of(spec.secrets), secrets.named())
        devices = [process.host.devices.remote() for process in self._beside]
        built = host.build.remote(
            spec.name, spec.role, arguments, spec.host, spec.threads, self._sharing, keys, *devices
        )
        self._process.building = built
        start = Within(STARTING, self._deadlines.start)
        return RayPending(host, self.name, f"building {spec.role.__name__}", built, start, self._unwatched)

    def call(self, within: Within, method: Callable[..., T], /, *args: Any, **kwargs: Any) -> RayPending[T]:
        host = self._process.host
        ref = host.run.remote(
            self._spec.name,
            method.__name__,
            *(_forward(a) for a in args),
            **{k: _forward(v) for k, v in kwargs.items()},
        )
        watch = self._unwatched if hasattr(method, "is_silent") else self._watch([*args, *kwargs.values()])
        return RayPending(host, self.name, method.__qualname__, ref, within, watch)

    @property
    def _unwatched(self) -> Watch:
        """A process that imports and loads may be silent for long, and has a deadline of its own."""
        return Watch(self._process.calls, {}, self._deadlines.heartbeat)

    def _watch(self, arguments: Sequence[Any]) -> Watch:
        """A call waits for its role's processes, and for those that are to make its arguments."""
        beats = {name: process.heartbeat for name, process in self._together.items()}
        for argument in arguments:
            if isinstance(argument, RayPending) and argument.watch is not None:
                beats |= argument.watch.heartbeats
        return Watch(self._process.calls, beats, self._deadlines.heartbeat)

    def pulse(self, within: Within) -> RayPending[int]:
        host = self._process.host
        return RayPending(host, self.name, "its sign of life", host.pulse.remote(), within)

    def lacking(self) -> str:
        return self._process.place.lacking()

    def moved(self) -> bool:
        return self._process.moved()

    def restart(self) -> RayPending[None]:
        if self._spec.again is None:
            raise TypeError(f"{self.name} has nothing that could take its place")
        self._process.restart()
        # The cores of the node that it is on now; who was there before keeps the threads it has.
        self._sharing = sum(process.node == self._process.node for process in self._processes.values())
        return self.build(self._spec.again)


def _forward(argument: Any) -> Any:
    return argument.ref if isinstance(argument, RayPending) else argument
