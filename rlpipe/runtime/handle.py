"""Typed handles: how a pipeline calls a role, wherever it runs.

    pending = policy.call(Policy.update, shard, deadline=600)
    stats = pending.result()

The method is passed as a function object, so that a type checker sees its arguments and its result.
"""

from typing import Callable, Concatenate, Generic, ParamSpec, Protocol, TypeVar

R = TypeVar("R")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
P = ParamSpec("P")


class DeadlineExceeded(TimeoutError):
    """A remote wait ran past its deadline; the message says who waited on whom, for what, and for how long."""


class RoleDied(RuntimeError):
    """The process that hosts a role is gone; the message names the role, its node and the cause Ray gives."""


class Pending(Protocol[T_co]):
    """A call under way. May itself be passed as an argument of another call, which then gets the result without
    it travelling through the driver."""

    def result(self) -> T_co:
        """The value. Raises what the role raised, `DeadlineExceeded`, or `RoleDied`."""

    def ready(self) -> bool:
        """True once `result` would not wait."""


class Handle(Protocol, Generic[R]):
    """One role in one process."""

    name: str

    def call(
        self, method: Callable[Concatenate[R, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> "Pending[T]": ...
