"""The Ray actor that hosts a role, and those that share its process."""

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import ray

from rlpipe.recipe import secrets
from rlpipe.runtime import tracebacks
from rlpipe.runtime.local import free_port
from rlpipe.runtime.recorder import Recorder, Recording
from rlpipe.runtime.threads import set_threads, stacks

DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """What a role may have of secrets. They travel as an argument of a call: what stands in an actor's runtime
    environment is shown by Ray's state API and written to its logs."""

    allowed: tuple[str, ...]
    """Names of variables that stay, if the node has set them."""
    given: dict[str, str]
    """Those that the driver has."""
    named: tuple[str, ...]
    """What counts as a secret because the recipe names it."""


class Host:
    """A process for a role and its guests.

    Roles are built and called by the one thread of the `role` group: torch's thread count and vLLM's state belong to
    a thread. `alive` answers from another thread while the role computes.
    """

    def __init__(self) -> None:
        self._roles: dict[str, Any] = {}
        self._recorder = Recorder()
        self._allowed: set[str] = set()

    @ray.method(concurrency_group="alive")
    def meeting_point(self) -> tuple[str, str, int]:
        """Node id, node address and a free port on it."""
        context = ray.get_runtime_context()
        return context.get_node_id(), ray.util.get_node_ip_address(), free_port()

    @ray.method(concurrency_group="role")
    def build(
        self,
        name: str,
        role: type,
        arguments: tuple[Any, ...],
        host: str | None,
        threads: int,
        sharing: int,
        keys: Keys,
        *devices: str,
    ) -> None:
        """`host` names the role of this process that the constructor gets as its last argument. `devices` are those of
        the processes that this one lives beside, which reserved them; Ray gave this one none."""
        if devices:
            os.environ[DEVICES] = ",".join(filter(None, devices))
        self._allowed.update(keys.allowed)
        secrets.take(keys.given, self._allowed, keys.named)
        set_threads(threads, sharing)
        with kept_with_place(), secrets.hidden_in_errors():
            self._roles[name] = role(*arguments, *([self._roles[host]] if host else []))

    @ray.method(concurrency_group="role")
    def devices(self) -> str:
        """The GPUs that this process sees, as CUDA counts them on its node; answered when what it was asked before,
        such as to build its roles, is done."""
        return os.environ.get(DEVICES, "")

    @ray.method(concurrency_group="role")
    def run(self, name: str, method: str, *args: Any, **kwargs: Any) -> Any:
        called = getattr(self._roles[name], method)
        with kept_with_place(), secrets.hidden_in_errors(), self._recorder.call(name, called.__qualname__):
            return called(*args, **kwargs)

    @ray.method(concurrency_group="role")
    def record(self) -> None:
        """Record what this process does."""
        self._recorder.start()

    @ray.method(concurrency_group="role")
    def recorded(self) -> Recording | None:
        """See `Recorder.stop`."""
        return self._recorder.stop()

    @ray.method(concurrency_group="alive")
    def pulse(self) -> int:
        """This process's id; answered while the role computes, too."""
        return os.getpid()

    @ray.method(concurrency_group="alive")
    def stacks(self) -> str:
        """Where every thread of this process stands now, for the report of a missed deadline."""
        return stacks()


def kept_with_place() -> contextlib.AbstractContextManager[None]:
    """What is raised in the block takes along where that was."""
    return tracebacks.kept(lambda: f"on node {ray.util.get_node_ip_address()}, in process {os.getpid()}")


RemoteHost = ray.remote(concurrency_groups={"role": 1, "alive": 1})(Host)
