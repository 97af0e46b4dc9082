"""A ledger in memory. A run that dies loses it; what was generated still stands in the rollouts' Parquet files."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlpipe.data.flow import Group, Prompt
from rlpipe.ledger.ledger import Appended, Lease, LedgerError

logger = logging.getLogger(__name__)


class Cursor(Protocol):
    """Where prompts come from: `data.cursor.PromptCursor`."""

    def draw(self, count: int) -> list[tuple[int, Prompt]]: ...


@dataclass(slots=True, eq=False)
class _Drawn:
    """One (epoch, prompt) that the cursor gave out and that is not yet trained."""

    epoch: int
    prompt: Prompt
    lease: Lease | None = None
    leases: int = 0
    group: Group | None = None


class MemoryLedger:
    """See `Ledger`. Drawn prompts are kept in cursor order; the first ones are the next to be trained."""

    def __init__(self, cursor: Cursor, lease_seconds: float, clock: Callable[[], float] = time.monotonic):
        self._cursor = cursor
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._drawn: list[_Drawn] = []
        self._by_lease: dict[str, _Drawn] = {}
        self._taken = 0
        self._replaceable = 0
        self._trained = 0
        self._dropped = 0

    def lease(self, count: int) -> list[Lease]:
        expired = [drawn for drawn in self._drawn if self._pending(drawn)][:count]
        fresh = [_Drawn(epoch, prompt) for epoch, prompt in self._cursor.draw(count - len(expired))]
        self._drawn += fresh
        return [self._grant(drawn) for drawn in expired + fresh]

    def append(self, group: Group) -> Appended:
        drawn = self._by_lease.get(group.group_id)
        if drawn is None or self._pending(drawn):
            return Appended.REFUSED
        if drawn.group is not None:
            return Appended.DUPLICATE
        drawn.group = group
        return Appended.STORED

    def take(self, count: int) -> list[Group] | None:
        if self._taken + self._replaceable and count > self._replaceable:
            raise LedgerError(f"{self._taken} groups are taken and not committed: call commit(step) first")
        groups = [drawn.group for drawn in self._drawn[self._taken : self._taken + count]]
        if len(groups) < count or any(group is None for group in groups):
            return None
        self._taken += count
        self._replaceable = max(0, self._replaceable - count)
        return groups

    def drop(self, group_ids: Sequence[str], reason: str) -> None:
        taken = {drawn.lease.lease_id: drawn for drawn in self._drawn[: self._taken]}
        strangers = [group_id for group_id in group_ids if group_id not in taken]
        if strangers:
            raise LedgerError(f"{strangers[0]} is not taken, so it cannot be dropped ({reason})")
        logger.info("dropped %s: %s", ", ".join(group_ids), reason)
        for group_id in group_ids:
            self._drawn.remove(taken[group_id])
            del self._by_lease[group_id]
        self._taken -= len(group_ids)
        self._replaceable += len(group_ids)
        self._dropped += len(group_ids)

    def commit(self, step: int) -> None:
        if not self._taken:
            raise LedgerError(f"step {step} commits, but nothing is taken: call take(count) first")
        for drawn in self._drawn[: self._taken]:
            del self._by_lease[drawn.lease.lease_id]
        del self._drawn[: self._taken]
        self._trained += self._taken
        self._taken = self._replaceable = 0

    def counts(self) -> dict[str, int]:
        pending = sum(self._pending(drawn) for drawn in self._drawn)
        completed = sum(drawn.group is not None for drawn in self._drawn)
        return {
            "pending": pending,
            "leased": len(self._drawn) - pending - completed,
            "completed": completed,
            "trained": self._trained,
            "dropped": self._dropped,
        }

    def _grant(self, drawn: _Drawn) -> Lease:
        """A lease for this prompt; one that it had before is no longer answered."""
        if drawn.lease is not None:
            del self._by_lease[drawn.lease.lease_id]
        again = f"r{drawn.leases}" if drawn.leases else ""
        lease_id = f"e{drawn.epoch}{again}/{drawn.prompt.prompt_id}"
        drawn.lease = Lease(lease_id, drawn.prompt, drawn.epoch, self._clock() + self._lease_seconds)
        drawn.leases += 1
        self._by_lease[lease_id] = drawn
        return drawn.lease

    def _pending(self, drawn: _Drawn) -> bool:
        return drawn.group is None and drawn.lease.deadline <= self._clock()
