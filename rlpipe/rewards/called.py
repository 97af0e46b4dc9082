"""Rewards whose work is done by a function that a `Caller` calls: in a process that can be killed, or, under --debug,
in this one."""

from collections.abc import Callable
from typing import Any, Protocol

from rlpipe.data.flow import Failure, Group
from rlpipe.rewards.killable import Caller
from rlpipe.rewards.reward import Allowance


class Named(Protocol):
    """What every reward of a recipe has."""

    name: str
    weight: float


class Called:
    """Starts, waits and ends with its caller."""

    def __init__(self, recipe: Named, caller: Caller):
        self.name = recipe.name
        self.weight = recipe.weight
        self._caller = caller
        self.start, self.ready, self.close = caller.start, caller.ready, caller.close

    def _each(
        self,
        group: Group,
        answer: str | Failure,
        request: Callable[[str, str], Any],
        seconds: float,
        allowance: Allowance,
    ) -> list[Any | Failure]:
        """What the function says to `request(answer, completion)` of each response, within `seconds` each; the failure
        for all of them if the row has no reference answer."""
        rows = len(group.completions)
        if isinstance(answer, Failure):
            return [answer] * rows
        return [
            self._caller.call(request(answer, completion), seconds, allowance, rows - row)
            for row, completion in enumerate(group.completions)
        ]
