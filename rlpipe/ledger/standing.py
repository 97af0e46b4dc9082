"""Where a run stands, read from its ledger beside the writer: nothing is locked and nothing is changed."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlpipe.data.storage import Storage
from rlpipe.ledger.book import lease_id
from rlpipe.ledger.manifests import read
from rlpipe.observe.rollouts import Fate

IN_FLIGHT = ("pending", "leased", "completed")
STATES = (*IN_FLIGHT, *(fate.value for fate in Fate))


@dataclass(frozen=True, slots=True)
class InFlight:
    """A prompt whose step is not committed."""

    epoch: int
    prompt_id: str
    group_id: str
    """Of its last lease."""
    leases: int
    state: str
    seconds: float
    """Until the lease ends; 0 where there is none."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the present manifest says."""

    step: int
    """The last committed one."""
    cursor: dict[str, Any]
    writer: dict[str, Any]
    by_epoch: dict[int, Counter[str]]
    """Prompts by state."""
    in_flight: list[InFlight]

    @property
    def totals(self) -> Counter[str]:
        return sum(self.by_epoch.values(), Counter())


def standing(storage: Storage) -> Standing | None:
    """None where there is no ledger. Raises `LedgerError` for one that is damaged."""
    if (found := read(storage)) is None:
        return None
    _, manifest = found
    in_flight = list(_in_flight(manifest["in_flight"], time.time()))
    by_epoch: dict[int, Counter[str]] = {}
    for fate, counts in manifest["totals"].items():
        for epoch, count in counts.items():
            by_epoch.setdefault(int(epoch), Counter())[fate] += count
    for prompt in in_flight:
        by_epoch.setdefault(prompt.epoch, Counter())[prompt.state] += 1
    return Standing(manifest["step"], manifest["cursor"], manifest["writer"], dict(sorted(by_epoch.items())), in_flight)


def _in_flight(rows: list[list[Any]], now: float) -> Iterator[InFlight]:
    for epoch, prompt_id, leases, deadline, segment in rows:
        state = "completed" if segment else "leased" if deadline > now else "pending"
        left = max(0.0, deadline - now) if state == "leased" else 0.0
        yield InFlight(epoch, prompt_id, lease_id(epoch, leases, prompt_id), leases, state, left)
