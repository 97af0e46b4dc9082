"""The handle of a role in a Ray actor."""

from collections.abc import Callable
from typing import Any, TypeVar

from rlpipe.runtime.handle import Within
from rlpipe.runtime.ray_pending import RayPending
from rlpipe.runtime.ray_process import RayProcess
from rlpipe.runtime.roles import RoleSpec

T = TypeVar("T")


class RayHandle:
    """One role in one process. `name` is the process's, as messages show it."""

    def __init__(self, name: str, process: RayProcess, spec: RoleSpec, sharing: int, start: Within) -> None:
        """`sharing` is among how many processes of the role its node's cores are shared; `start` is how long building
        it may take."""
        self.name = name
        self._process, self._spec, self._sharing, self._start = process, spec, sharing, start

    def build(self, arguments: tuple[Any, ...]) -> RayPending[None]:
        """Construct the role; later calls wait for it."""
        host, spec = self._process.host, self._spec
        built = host.build.remote(spec.name, spec.role, arguments, spec.host, spec.threads, self._sharing)
        return RayPending(host, self.name, f"building {spec.role.__name__}", built, self._start)

    def call(self, within: Within, method: Callable[..., T], /, *args: Any, **kwargs: Any) -> RayPending[T]:
        host = self._process.host
        ref = host.run.remote(
            self._spec.name,
            method.__name__,
            *(_forward(a) for a in args),
            **{k: _forward(v) for k, v in kwargs.items()},
        )
        return RayPending(host, self.name, method.__qualname__, ref, within)

    def pulse(self, within: Within) -> RayPending[int]:
        host = self._process.host
        return RayPending(host, self.name, "its sign of life", host.pulse.remote(), within)

    def restart(self) -> RayPending[None]:
        if self._spec.again is None:
            raise TypeError(f"{self.name} has nothing that could take its place")
        self._process.restart()
        return self.build(self._spec.again)


def _forward(argument: Any) -> Any:
    return argument.ref if isinstance(argument, RayPending) else argument
