"""What a pipeline asks a runtime to start, and the runtime's interface."""

from dataclasses import dataclass, field
from typing import Any, Callable, Protocol

from rlpipe.recipe.training import Resources
from rlpipe.runtime.handle import Handle


@dataclass(frozen=True, slots=True)
class Seat:
    """Which process of a role this is, and where the role's processes meet."""

    index: int
    count: int
    local_index: int
    """Index among the role's processes on the same node."""
    address: str
    """Address of the node that hosts process 0."""
    port: int
    """A port that was free on that node."""


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """A role to start: `count` processes, each running `role(*arguments(seat))`."""

    name: str
    role: type
    arguments: Callable[[Seat], tuple[Any, ...]]
    count: int
    resources: Resources
    threads: int
    """CPU threads of each process; 0 takes all cores of its node."""
    recipe_key: str
    """Recipe section that sizes this role, for error messages."""
    environment: dict[str, str] = field(default_factory=dict)


class Started(Protocol):
    """Roles that are starting, side by side."""

    handles: dict[str, list[Handle[Any]]]
    """By role name, in seat order. Calls made before `ready` wait for the role's constructor."""

    def ready(self) -> None:
        """Wait until every role is built. Raises `DeadlineExceeded` or what a constructor raised."""


class Runtime(Protocol):
    """Where roles run."""

    def start(self, roles: list[RoleSpec]) -> Started:
        """Begin to start all roles. Raises `PlacementError`, or `DeadlineExceeded` if a process does not come up."""

    def stop(self) -> None:
        """Stop the roles started so far; the runtime can start others afterwards."""


class PlacementError(RuntimeError):
    """The cluster cannot give what the recipe asks for; the message says what was asked, what there is, and which
    recipe line to change."""
