"""The record of which prompts were handed out, answered and trained: `cursor -> lease -> append -> take -> commit`.

    pending ──lease──> leased ──append──> completed ──take──┬──commit──> trained
       ^                  │                                 └───drop───> dropped
       └──── expired ─────┘

The group that answers a lease bears the lease's id as its `group_id`. A prompt leased again after its lease expired
gets a new id, so a late answer to the old one is refused; its seeds hang on prompt and epoch, not on the lease, so the
new answer has the tokens the old one would have had.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from rlpipe.data.flow import Group, Prompt


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


class Ledger(Protocol):
    """Single writer."""

    def lease(self, count: int) -> list[Lease]:
        """Prompts to answer next: expired leases first, then the cursor's."""

    def append(self, group: Group) -> Appended:
        """Hand in the answer to a lease. When this returns `STORED`, the group will be trained."""

    def take(self, count: int) -> list[Group] | None:
        """The next `count` groups in cursor order, or None while one of them is still missing. They stay taken until
        `commit`. While some are taken, only as many more can be as were dropped of them."""

    def drop(self, group_ids: Sequence[str], reason: str) -> None:
        """These of the taken groups are done with: trained on without a gradient, and not handed out again."""

    def commit(self, step: int) -> None:
        """What was taken has been trained, in this step."""

    def counts(self) -> dict[str, int]:
        """Prompts by state: pending (expired and not leased again), leased, completed, trained, dropped."""
