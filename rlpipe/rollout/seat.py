"""One engine of the pool: what it has to do, the calls to it that are under way, and whether it serves."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from rlpipe.data.flow import GroupRequest, Trajectory
from rlpipe.rollout.delivery import Deliverable, Delivered
from rlpipe.rollout.speed import Worked
from rlpipe.rollout.worker import RolloutWorker, Slice
from rlpipe.runtime.handle import Handle, Pending
from rlpipe.runtime.revival import Revival

FinishedGroup = tuple[Trajectory, ...]
"""All responses to one request, by sample index."""


Delivery = Generator[Pending[Any], None, Delivered | None]
"""Calls of an engine one after the other, and what comes of them."""


@dataclass(slots=True)
class AskedGroup:
    """A group that is to be generated."""

    request: GroupRequest
    response_tokens: int
    """Expected of each response."""
    finished: list[Trajectory] = field(default_factory=list)
    lost: int = 0
    """How many engines were lost that had it."""

    @property
    def tokens(self) -> int:
        """Expected still to come: the prompt, which is read once, and the responses that are missing."""
        missing = len(self.request.seeds) - len(self.finished)
        return len(self.request.prompt_tokens) + missing * self.response_tokens

    def again(self) -> "AskedGroup":
        """As it is asked of another engine. What there is of it is sampled anew: its seeds make the same of it."""
        return AskedGroup(self.request, self.response_tokens, lost=self.lost + 1)


@dataclass(slots=True, eq=False)
class Seat:
    """See above."""

    model: str
    handle: Handle[RolloutWorker]
    groups: dict[str, AskedGroup] = field(default_factory=dict)
    tokens: int = 0
    """Expected still to come, of all groups."""
    worked: Worked = field(default_factory=Worked)
    """Since somebody has asked for it."""
    advancing: Pending[Slice] | None = None
    submitted: list[Pending[None]] = field(default_factory=list)
    barren_seconds: float = 0.0
    delivered: Delivered | None = None
    """Proof that it serves what was published last."""
    delivery: Delivery | None = None
    """Under way while it is published to, or put to sleep."""
    delivering: Pending[Any] | None = None
    """What the delivery waits for."""
    revival: Revival[Delivered | None] | None = None
    """Under way while the engine is lost, or was never there."""
    losses: int = 0
    """Engines lost here since one has finished a group."""

    @property
    def serves(self) -> bool:
        return self.revival is None

    @property
    def awaited(self) -> list[Pending[Any]]:
        """What it may have something to say about."""
        waits = [self.advancing, self.delivering] if self.revival is None else [self.revival.pending]
        return [pending for pending in waits if pending is not None]

    def deliver(self, publication: Deliverable) -> None:
        """Have the engine take these weights and prove it; one that is lost gets them when it is revived."""
        self.begin(publication.deliver)

    def begin(self, delivery: Callable[[Handle[RolloutWorker]], Delivery]) -> None:
        """Have something done to the engine in several calls; nothing to one that is lost."""
        self.delivered = None
        if self.serves:
            self.delivery = delivery(self.handle)
            self.go_on()

    def go_on(self) -> None:
        """Take the delivery's next step. Raises what it raises."""
        try:
            self.delivering = next(self.delivery)
        except StopIteration as end:
            self.delivered, self.delivery, self.delivering = end.value, None, None

    def give(self, group: AskedGroup) -> None:
        """It has this to do, too."""
        self.groups[group.request.group_id] = group
        self.tokens += group.tokens
        self.worked.most_outstanding = max(self.worked.most_outstanding, self.tokens)

    def take(self, trajectory: Trajectory) -> FinishedGroup | None:
        """File a response; the whole group once it is the last one."""
        group = self.groups[trajectory.group_id]
        group.finished.append(trajectory)
        self.tokens -= group.response_tokens
        if len(group.finished) < len(group.request.seeds):
            return None
        self.forget(trajectory.group_id)
        self.losses = 0
        return tuple(sorted(group.finished, key=lambda t: t.sample_index))

    def forget(self, group_id: str) -> bool:
        """What is left of this group is not to be done; whether there was any."""
        group = self.groups.pop(group_id, None)
        self.tokens -= 0 if group is None else group.tokens
        return group is not None

    def lose(self) -> list[AskedGroup]:
        """The engine is gone; what it was asked is to be asked of others."""
        groups = [group.again() for group in self.groups.values()]
        self.groups, self.tokens, self.advancing, self.submitted = {}, 0, None, []
        self.barren_seconds, self.delivered, self.delivery, self.delivering = 0.0, None, None, None
        self.losses += 1
        return groups
