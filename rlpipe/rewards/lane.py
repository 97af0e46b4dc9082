"""The groups that wait for one reward of the mix, and the threads that ask it about them.

A reward that is a `BatchReward` is asked about all groups that wait, as far as one call takes them. Nothing is held
back for a fuller batch: while one call is under way the next one's groups gather.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rlpipe.data.flow import Group
from rlpipe.rewards.reward import Allowance, BatchReward, Component, Reward


@dataclass(slots=True, eq=False)
class Scoring:
    """A group, and what the rewards of the mix have said about it so far."""

    group: Group
    columns: dict[str, list[Component]] = field(default_factory=dict)
    """By reward: one component per response."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one reward says about one group."""

    scoring: Scoring
    reward: str
    column: list[Component]


@dataclass(frozen=True, slots=True)
class Raised:
    """What one reward raised when it was asked about these."""

    scorings: Sequence[Scoring]
    error: Exception


class Lane:
    """One reward: at most `threads` calls of it at once; without threads they are made by `work_off`."""

    def __init__(
        self, reward: Reward, threads: int, seconds_per_group: float, deliver: Callable[[Said | Raised], None]
    ):
        self._reward, self._seconds, self._deliver = reward, seconds_per_group, deliver
        self._waiting: deque[Scoring] = deque()
        self._changed = threading.Condition()
        self._closed = False
        for _ in range(threads):
            threading.Thread(target=self._work, daemon=True, name=f"reward {reward.name}").start()

    def put(self, scoring: Scoring) -> None:
        """Ask the reward about this group."""
        with self._changed:
            self._waiting.append(scoring)
            self._changed.notify()

    def work_off(self) -> None:
        """Ask about everything that waits, here and now."""
        while self._waiting:
            self._call(self._take())

    def forget(self) -> None:
        """Ask about nothing that waits."""
        with self._changed:
            self._waiting.clear()

    def close(self) -> None:
        """Begin no further call."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while chosen := self._next():
            try:
                self._call(chosen)
            except Exception as error:
                self._deliver(Raised(chosen, error))

    def _next(self) -> list[Scoring]:
        """The groups of the next call, once there are some; none when the lane is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return [] if self._closed else self._take()

    def _take(self) -> list[Scoring]:
        batched = isinstance(self._reward, BatchReward)
        count = self._reward.takes([scoring.group for scoring in self._waiting]) if batched else 1
        return [self._waiting.popleft() for _ in range(count)]

    def _call(self, chosen: Sequence[Scoring]) -> None:
        columns = self._columns([scoring.group for scoring in chosen])
        for scoring, column in zip(chosen, columns, strict=True):
            self._deliver(Said(scoring, self._reward.name, column))

    def _columns(self, groups: list[Group]) -> list[list[Component]]:
        allowance = Allowance(self._seconds)
        if isinstance(self._reward, BatchReward):
            return self._reward.score_all(groups, allowance)
        return [self._reward.score(group, allowance) for group in groups]
