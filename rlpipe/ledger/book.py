"""Which prompts are handed out, answered and trained, in memory.

    pending ──lease──> leased ──append──> completed ──take──┬──commit──> trained or failed
       ^                  │                                 └───drop───> dropped
       └──── expired ─────┘

The group that answers a lease bears the lease's id as its `group_id`. A prompt leased again after its lease expired
gets a new id, so a late answer to the old one is refused; its seeds hang on prompt and epoch, not on the lease, so the
new answer has the tokens the old one would have had.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rlpipe.data.flow import Failure, Group, Prompt
from rlpipe.observe.rollouts import Fate


class LedgerError(RuntimeError):
    """The loop asked for something that the ledger's state does not allow."""


class Appended(StrEnum):
    """What became of a group handed in. Only `STORED` counts; the other two are normal after a fault."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    """The lease was answered before; this copy is dropped."""
    REFUSED = "refused"
    """No live lease bears this id: it expired, was trained already, or never was."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to answer one prompt once."""

    lease_id: str
    """The `group_id` of the group that will answer it."""
    prompt: Prompt
    epoch: int
    deadline: float
    """Until when the answer is taken, in the ledger's clock."""


@dataclass(slots=True, eq=False)
class Drawn:
    """One (epoch, prompt) that the cursor gave out and whose step is not yet committed."""

    epoch: int
    prompt: Prompt
    leases: int = 0
    """How often it was leased."""
    deadline: float = 0.0
    """Of the last lease."""
    group: Group | None = None
    segment: str = ""
    """Where its answer stands."""
    reason: str = ""
    """Why it was dropped."""

    @property
    def lease_id(self) -> str:
        return lease_id(self.epoch, self.leases, self.prompt.prompt_id)


def lease_id(epoch: int, leases: int, prompt_id: str) -> str:
    """The id of a prompt's lease number `leases`, from 1."""
    return f"e{epoch}{f'r{leases - 1}' if leases > 1 else ''}/{prompt_id}"


class Book:
    """What was drawn, in cursor order; the first ones are the next to be trained."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.totals: dict[str, Counter[int]] = {fate.value: Counter() for fate in Fate}
        """Of committed steps: how many groups had each fate, by epoch."""
        self._clock = clock
        self._drawn: list[Drawn] = []
        self._by_lease: dict[str, Drawn] = {}
        self._taken = 0
        """How many of `_drawn` are taken; those that were dropped stay among them until the step's commit."""
        self._replaceable = 0

    def missing(self, ahead: int) -> tuple[list[Drawn], int]:
        """Of the next `ahead` that are not taken: those without an answer or a live lease, and how many are not even
        drawn."""
        window = self._drawn[self._taken : self._taken + ahead]
        return [drawn for drawn in window if self._pending(drawn)], ahead - len(window)

    def draw(self, pairs: Iterable[tuple[int, Prompt]]) -> list[Drawn]:
        """Enter what the cursor gave out."""
        fresh = [Drawn(epoch, prompt) for epoch, prompt in pairs]
        self._drawn += fresh
        return fresh

    def grant(self, drawn: Drawn, deadline: float) -> Lease:
        """A lease for this prompt; one that it had before is no longer answered."""
        self._by_lease.pop(drawn.lease_id, None)
        drawn.leases += 1
        drawn.deadline = deadline
        self._by_lease[drawn.lease_id] = drawn
        return Lease(drawn.lease_id, drawn.prompt, drawn.epoch, deadline)

    def hold(self, lease_ids: Collection[str], deadline: float) -> None:
        """See `Ledger.hold`."""
        for drawn in self._drawn:
            if drawn.group is None:
                drawn.deadline = deadline if drawn.lease_id in lease_ids else 0.0

    def judge(self, groups: Sequence[Group]) -> list[Appended]:
        """What is to become of groups handed in together; nothing is entered yet."""
        seen: set[str] = set()
        return [self._judge(group.group_id, seen) for group in groups]

    def answer(self, groups: Iterable[Group], segment: str) -> None:
        """Enter groups that were judged `STORED`, and that stand in this segment."""
        for group in groups:
            drawn = self._by_lease[group.group_id]
            drawn.group, drawn.segment = group, segment

    def awaits(self, group: Group, segment: str) -> bool:
        """Whether this group of a segment is one that the rows named; others in it were committed before."""
        drawn = self._by_lease.get(group.group_id)
        return drawn is not None and drawn.segment == segment

    def take(self, count: int) -> list[Group] | None:
        """The next `count` answers, or None while one of them is missing. See `Ledger.take`."""
        if self._taken and count > self._replaceable:
            raise LedgerError(f"{len(self.taken)} groups are taken and not committed: call commit(step) first")
        groups = [drawn.group for drawn in self._drawn[self._taken : self._taken + count]]
        if len(groups) < count or any(group is None for group in groups):
            return None
        self._taken += count
        self._replaceable = max(0, self._replaceable - count)
        return groups

    def lacking(self, count: int) -> set[str]:
        """See `Ledger.lacking`."""
        window = self._drawn[self._taken : self._taken + count]
        return {drawn.lease_id for drawn in window if drawn.group is None}

    def answered(self) -> list[str]:
        """The leases whose answers are there and not taken."""
        return [drawn.lease_id for drawn in self._drawn[self._taken :] if drawn.group is not None]

    def failed(self) -> list[str]:
        """The leases whose answers have a failure among their outcomes."""
        groups = [drawn.group for drawn in self._drawn if drawn.group is not None and not drawn.reason]
        return [group.group_id for group in groups if any(isinstance(outcome, Failure) for outcome in group.outcomes)]

    @property
    def taken(self) -> list[Drawn]:
        """Those taken and not dropped, in cursor order."""
        return [drawn for drawn in self._drawn[: self._taken] if not drawn.reason]

    @property
    def dropped(self) -> list[Drawn]:
        """Those dropped since the last commit, in cursor order."""
        return [drawn for drawn in self._drawn[: self._taken] if drawn.reason]

    def drop(self, group_ids: Sequence[str], reason: str) -> None:
        """See `Ledger.drop`."""
        taken = {drawn.lease_id: drawn for drawn in self.taken}
        if strangers := [group_id for group_id in group_ids if group_id not in taken]:
            raise LedgerError(f"{strangers[0]} is not taken, so it cannot be dropped ({reason})")
        for group_id in group_ids:
            taken[group_id].reason = reason
            del self._by_lease[group_id]
        self._replaceable += len(group_ids)

    def give_back(self) -> None:
        """See `Ledger.give_back`."""
        for drawn in self.dropped:
            drawn.reason = ""
            self._by_lease[drawn.lease_id] = drawn
        self._taken = self._replaceable = 0

    def ask_again(self, group_ids: Sequence[str]) -> None:
        """See `Ledger.ask_again`."""
        for group_id in group_ids:
            self._unanswered(self._by_lease[group_id])

    def commit(self, fates: Mapping[str, Fate]) -> None:
        """What is taken leaves the book, and counts as what became of it, by lease."""
        for drawn in self._drawn[: self._taken]:
            self._by_lease.pop(drawn.lease_id, None)
            self.totals[fates[drawn.lease_id]][drawn.epoch] += 1
        del self._drawn[: self._taken]
        self._taken = self._replaceable = 0

    @property
    def segments(self) -> set[str]:
        """Where answers stand that are still needed."""
        return {drawn.segment for drawn in self._drawn} - {""}

    def rows(self) -> list[list[Any]]:
        """What is drawn, as JSON-able rows in cursor order."""
        return [[d.epoch, d.prompt.prompt_id, d.leases, round(d.deadline, 3), d.segment] for d in self._drawn]

    def restore(self, rows: Iterable[Sequence[Any]], prompt: Callable[[str], Prompt]) -> None:
        """What `rows` said. Nobody holds its leases any more; answers are to follow. What was taken or dropped is there
        to be taken again: its step was not committed."""
        for epoch, prompt_id, leases, _, segment in rows:
            drawn = Drawn(epoch, prompt(prompt_id), leases, segment=segment)
            self._drawn.append(drawn)
            if segment:
                self._by_lease[drawn.lease_id] = drawn

    def forget(self, segment: str) -> int:
        """The answers of a segment that cannot be read are missing again; returns how many."""
        lost = [drawn for drawn in self._drawn if drawn.segment == segment]
        for drawn in lost:
            self._unanswered(drawn)
        return len(lost)

    def counts(self) -> dict[str, int]:
        """Prompts by state."""
        pending = sum(self._pending(drawn) for drawn in self._drawn)
        dropped = len(self.dropped)
        completed = sum(drawn.group is not None for drawn in self._drawn) - dropped
        states = {"pending": pending, "leased": len(self._drawn) - pending - completed - dropped}
        counts = states | {"completed": completed} | {fate: each.total() for fate, each in self.totals.items()}
        return counts | {Fate.DROPPED.value: counts[Fate.DROPPED] + dropped}

    def _unanswered(self, drawn: Drawn) -> None:
        drawn.segment, drawn.group, drawn.deadline = "", None, 0.0
        del self._by_lease[drawn.lease_id]

    def _judge(self, group_id: str, seen: set[str]) -> Appended:
        drawn = self._by_lease.get(group_id)
        if drawn is None or self._pending(drawn):
            return Appended.REFUSED
        if drawn.group is not None or group_id in seen:
            return Appended.DUPLICATE
        seen.add(group_id)
        return Appended.STORED

    def _pending(self, drawn: Drawn) -> bool:
        return drawn.group is None and drawn.deadline <= self._clock()
