"""Typed handles: how a pipeline calls a role, wherever it runs.

    pending = policy.call(Within("train", 600), Policy.update, shard)
    stats = pending.result()

The method is passed as a function object, so that a type checker sees its arguments and its result. Calls of one handle
run one after the other, in the order they were made. A `Pending` may itself be an argument of another call, which then
gets the value without it travelling through the driver.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

R = TypeVar("R")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
P = ParamSpec("P")


class DeadlineExceeded(TimeoutError):
    """A remote wait ran past its deadline; the message says who was waited for, in which phase, and for how long."""

    def __init__(self, message: str, who: str = "") -> None:
        """`who`: name of the handle, if it was one that was waited for."""
        super().__init__(message)
        self.who = who


class NotStarted(DeadlineExceeded):
    """A process has not come up, or not built its role, within deadlines.start, and has not died of it. Of a run's
    first start that is told at once: another one would be as late. In the place of one that was lost it is one loss
    more."""


class Silent(DeadlineExceeded):
    """A process gives no sign of life: it is there, and hangs as a whole."""


class RoleDied(RuntimeError):
    """The process that hosts a role is gone; the message names the role and the cause."""

    def __init__(self, message: str, who: str = "") -> None:
        """`who`: name of the handle."""
        super().__init__(message)
        self.who = who


class GivenUp(RuntimeError):
    """Processes are lost faster than replacing them helps; the message names the fault that recurs."""


@dataclass(frozen=True, slots=True)
class Within:
    """A deadline with a name: what is being waited for, and for how many seconds at most."""

    phase: str
    seconds: float


class Pending(Protocol[T_co]):
    """A call under way."""

    def result(self) -> T_co:
        """The value. Raises what the role raised, `DeadlineExceeded` (`NotStarted` of a start), or `RoleDied`."""

    @classmethod
    def ready(cls, pendings: Sequence[Self], seconds: float) -> list[Self]:
        """Those of `pendings` whose `result` would not wait; waits up to `seconds` for the first one."""

    def seconds_left(self) -> float:
        """Until its deadline."""


class Handle(Protocol, Generic[R]):
    """One role in one process."""

    name: str
    begun: bool
    """Whether its process was ever started. One that the cluster had no room for yet is started by `restart`."""
    node: str
    """The node that its process was started on, for people; empty in this process, and while it is on none."""

    def call(
        self, within: Within, method: Callable[Concatenate[R, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Pending[T]: ...

    def pulse(self, within: Within) -> Pending[int]:
        """A sign of life of the process, which it gives while the role computes, too: its id."""

    def lacking(self) -> str:
        """What the cluster lacks to give its process another place in that of a node that is gone; empty while it has
        one."""

    def moved(self) -> bool:
        """Whether the node is gone that its process was started on, so that this is no fault of the process."""

    def restart(self) -> Pending[None]:
        """End the process, whatever it does, and build the role in a new one in its place, with the arguments that its
        `RoleSpec.again` names. The handle's next calls go there; those under way are lost. Raises TypeError for a role
        without `again`."""


def silent(method: Callable[P, T]) -> Callable[P, T]:
    """Of a role's method: while it is called, the process may give no sign of life. Reading a large file is one call
    that holds Python's lock; its deadline is all that bounds it."""
    method.is_silent = True
    return method


def first_ready(pendings: Sequence[Pending[Any]], seconds: float) -> list[Pending[Any]]:
    """The finished ones among `pendings` (all of one runtime), after waiting up to `seconds` for the first."""
    return type(pendings[0]).ready(pendings, seconds) if pendings else []


Look = Callable[[Sequence[Pending[Any]], float], list[Pending[Any]]]
"""As `first_ready`; one that waits may do something else beside."""


def results(pendings: Sequence[Pending[T]], look: Look = first_ready) -> list[T]:
    """The values of all, in order. The first failure to come is raised, also while others are waited for: ranks wait
    for one that died."""
    if len(pendings) == 1 and look is first_ready:
        return [pendings[0].result()]
    values: dict[int, T] = {}
    while waiting := [pending for pending in pendings if id(pending) not in values]:
        first = min(waiting, key=lambda pending: pending.seconds_left())
        for pending in look(waiting, max(0.0, first.seconds_left())) or [first]:
            values[id(pending)] = pending.result()
    return [values[id(pending)] for pending in pendings]
