"""What a pipeline asks a runtime to start, and the runtime's interface."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rlpipe.recipe.training import Resources
from rlpipe.runtime.handle import Handle
from rlpipe.runtime.recorder import Recorded


@dataclass(frozen=True, slots=True)
class Seat:
    """Which process of a role this is, and where the role's processes meet."""

    index: int
    count: int
    local_index: int
    """Index among the role's processes on the same node."""
    local_count: int
    """How many processes of the role there are on that node."""
    address: str
    """Address of the node that hosts process 0."""
    port: int
    """A port that was free on that node."""


def seats_at(places: Sequence[tuple[str, str, int]]) -> list[Seat]:
    """The seats of a role's processes, each of which told its node, the node's address and a free port there."""
    nodes = [node for node, _, _ in places]
    _, address, port = places[0]
    return [
        Seat(i, len(nodes), nodes[:i].count(node), nodes.count(node), address, port) for i, node in enumerate(nodes)
    ]


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """A role to start: `count` processes, each running `role(*arguments(seat))`."""

    name: str
    role: type
    arguments: Callable[[Seat], tuple[Any, ...]]
    count: int
    resources: Resources
    threads: int
    """CPU threads of each process; 0 shares all cores of a node among the role's processes there."""
    recipe_key: str
    """Recipe section that sizes this role, for error messages."""
    environment: dict[str, str] = field(default_factory=dict)
    shares: str | None = None
    """Name of the role in whose processes this one lives, seat by seat; `count` is that role's, nothing is reserved.

    One process for several roles, and not several processes on one GPU: they have one CUDA context, one allocator, in
    which a role finds the memory that another gave back, and one process group; and they take turns by themselves, as a
    process answers one call at a time. `--debug` has all roles in one process anyway.
    """
    again: tuple[Any, ...] | None = None
    """Arguments of a process that takes the place of one that died. None where the processes of the role hang together,
    so that one alone cannot be replaced."""
    at_least: int | None = None
    """How many of the processes must have room; the others are started by `Handle.restart` when there is some, with the
    arguments of `again`. None: all."""
    nodes: Literal["pack", "spread"] = "pack"
    """Of processes that can be replaced alone: on as few nodes as possible, or on as many."""
    secrets: tuple[str, ...] = ()
    """Names of the variables with keys that its processes get; no others reach them."""
    gpus: int = 1
    """GPUs of each process where `resources` says auto and the cluster has some; all of them on one node."""
    beside: str | None = None
    """Name of the role on whose GPUs this one lives in processes of its own, each on those of as many of that role's
    processes as there are for each. It reserves no GPUs, and is built when they are."""
    takes_host: bool = False
    """Whether the constructor gets the object of the role that it shares with as its last argument."""

    @property
    def host(self) -> str | None:
        """The role whose object the constructor gets."""
        return self.shares if self.takes_host else None


class Started(Protocol):
    """Roles that are starting, side by side."""

    handles: dict[str, list[Handle[Any]]]
    """By role name, in seat order. Calls made before `ready` wait for the role's constructor."""

    def ready(self) -> None:
        """Wait until every role is built. Raises `DeadlineExceeded` or what a constructor raised."""

    def restart(self, names: Sequence[str]) -> None:
        """End the processes of these roles, whatever they do, and build the roles anew in others, as they were built
        first; a role goes together with those that share its processes. The handles stay. Raises as `ready`, and
        `PlacementError` if a node of theirs is gone and no other has room within deadlines.placement."""


class Runtime(Protocol):
    """Where roles run."""

    def start(self, roles: list[RoleSpec]) -> Started:
        """Begin to start all roles. Raises `PlacementError`, or `DeadlineExceeded` if a process does not come up."""

    def stop(self) -> None:
        """Stop the roles started so far; the runtime can start others afterwards."""

    def record(self) -> None:
        """From now on record what the processes do. Raises as their calls do."""

    def recorded(self) -> Recorded:
        """What was recorded since `record`, which ends with it."""


class PlacementError(RuntimeError):
    """The cluster cannot give what the recipe asks for; the message says what was asked, what there is, and which
    recipe line to change."""


class NoCluster(RuntimeError):
    """There is no Ray to run on: it did not start, or does not answer; the message says what to do."""


class OtherVersions(RuntimeError):
    """The cluster's Ray or Python is another one; the message has both."""


class AddressWrong(ValueError):
    """The environment names what can be no cluster; the message says what is expected."""
