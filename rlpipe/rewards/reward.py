"""What a reward is: for each response of a group a number, `None` (does not apply) or a `Failure`; never a bare 0.

Kinds of failure, as they stand in `Failure.kind` and in the rollouts' Parquet:

    exception              the function or the verifier raised
    not_a_number           NaN, infinity, or something that is no number
    wrong_length           not one reward per response
    deadline               no answer in time; the process was killed
    crashed                the process that computes the reward, or the program that is judged, died by a signal
    missing_column         the row lacks the column that holds the reference
    unparseable_reference  the reference is no mathematical answer, or no tests (a response that is none is wrong: 0)
    not_applicable         no component of the mix applies to the row
    unknown_component      the environment names no such component

An episode whose environment raised, died or was late fails with the same kinds; one whose environment waits for more:

    unfinished             a turn was cut off at its limit, or no token was left for the next one
    empty                  a turn has no text

of a program that `code` runs (its wrong output and its exceptions are 0):

    memory                 it wanted more memory than it may have
    output                 it printed more than it may
    files                  it wrote or opened more files than it may
    processes              it started more processes or threads than it may
    forbidden              it wanted what is kept from it: network, paths outside, other processes, environment
    unsupported_test       a test of it does what cannot be checked from outside of it, or asks nothing of it

of a reward model:

    too_long               prompt and response together are longer than it takes

of a judge: see `judging.question`; and of an endpoint that `http` asks, when repeating does not help:

    http_status            it answered with a status other than success
    unreachable            no connection, or one that broke off
    bad_answer             its answer is not what was agreed
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from rlpipe.data.flow import Failure, Group


@dataclass(frozen=True, slots=True)
class Explained:
    """A reward, and how it came about, as JSON-able values."""

    value: float
    details: dict[str, Any]


Component = float | None | Failure | Explained


class RewardUnusable(RuntimeError):
    """A reward (or an environment) works for no row: its file, function or an import is missing. Raised, never a
    Failure."""


class Allowance:
    """Seconds that one call of a reward has left. Waiting for a busy verifier, or for one to start, is not spent."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.left = seconds

    def share(self, limit: float, rows: int) -> float:
        """Seconds for the next of `rows` calls: at most `limit`, and so that the rows behind it get theirs."""
        return min(limit, self.left / max(rows, 1))

    def spend(self, seconds: float) -> None:
        self.left = max(0.0, self.left - seconds)


class Loaded(Protocol):
    """What every component of the mix has."""

    name: str
    weight: float

    def start(self) -> None:
        """Begin, in the background, whatever takes long before the first score (processes, imports)."""

    def ready(self) -> None:
        """Wait until it can be asked. Raises `RewardUnusable`."""

    def close(self) -> None: ...


class GroupReward(Loaded, Protocol):
    """One component of the mix, asked group by group. `score` is called from several threads at once."""

    def score(self, group: Group, allowance: Allowance) -> list[Component]:
        """One component per response of the group."""


@runtime_checkable
class BatchReward(Loaded, Protocol):
    """One that takes several groups in a call. `score_all` is called from several threads at once."""

    def takes(self, waiting: Sequence[Group]) -> int:
        """How many of the groups that wait (there are some), from the first on, the next call takes: 1 at least."""

    def score_all(self, groups: Sequence[Group], allowance: Allowance) -> list[list[Component]]:
        """For each group one component per response."""


Reward = GroupReward | BatchReward


def reference(group: Group, name: str) -> str | Failure:
    """The reference answer of the group's row."""
    value = column(group, name, "answer_column")
    return value if isinstance(value, Failure) else str(value)


def column(group: Group, name: str, key: str) -> Any | Failure:
    """What a column of the group's row holds; `key` is the recipe's key that names the column."""
    columns = group.prompt.columns
    if name in columns:
        return columns[name]
    has = ", ".join(map(repr, sorted(columns))) or "none"
    return Failure("missing_column", f"the row has no column {name!r} (it has: {has}); set `{key}`")
