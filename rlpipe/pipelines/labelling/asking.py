"""A pass, from its first lease to its last commit, whoever answers."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from rlpipe.data.flow import Group, Prompt
from rlpipe.ledger.book import Appended, Lease
from rlpipe.ledger.ledger import Ledger
from rlpipe.pipelines.labelling.store import Pass, Store, committed
from rlpipe.rewards.stage import RewardFailed

logger = logging.getLogger(__name__)

SECONDS_PER_LOOK = 0.25
SECONDS_PER_APPEND = 0.5
"""How long an answer may wait for others, to become durable together with them."""
BATCHES_AHEAD = 4
"""Commits whose prompts are under way at once: a slow answer holds up no others."""


class Answering(Protocol):
    """Whoever answers leases."""

    def ask(self, leases: Sequence[Lease]) -> None: ...

    def answered(self, seconds: float) -> list[Group]:
        """What is answered, waiting up to `seconds` for the first. A group bears its lease's id."""

    def in_hand(self) -> Collection[str]:
        """The leases that are not answered yet."""

    def check(self, groups: Sequence[Group], step: int) -> None:
        """Raises `RewardFailed` if too much of a commit failed."""


Tell = Callable[[list[Group], int, int], None]
"""Takes the groups of a commit, and how many of how many prompts are done."""


def settle(
    store: Store,
    prompts: Sequence[Prompt],
    answering: Callable[[], AbstractContextManager[Answering]],
    per_commit: int,
    tell: Tell,
) -> dict[str, Group]:
    """The answers to these, by prompt id; nobody is started where all of them are there. One that fails now is asked
    again by the next run, and lacks in this one."""
    found = store.found(prompts)
    if all(prompt.prompt_id in found for prompt in prompts):
        return found
    settled = set(found)
    known = frozenset(store.failed)  # they were counted when they failed first, and stop nothing by failing again
    with answering() as them:
        while (one := store.next_pass(prompts, settled)) is not None:
            with one.ledger:
                work(one, them, per_commit, tell, known)
            settled |= set(one.prompt_ids)
    return store.found(prompts)


def work(one: Pass, answering: Answering, per_commit: int, tell: Tell, known: Collection[str] = ()) -> None:
    """Until all of the pass is committed. What was durable stays so if anything raises. Failures of the `known` prompts
    count for nothing."""
    ready = _Ready(one.ledger, answering)
    try:
        _work(one, answering, ready, per_commit, tell, known)
    except RewardFailed:  # with what failed mended, all of that is to be asked again
        ready.append()
        one.ledger.ask_failed_again()
        raise
    finally:  # what was answered before somebody else failed
        ready.append()


def _work(
    one: Pass, answering: Answering, ready: "_Ready", per_commit: int, tell: Tell, known: Collection[str]
) -> None:
    ledger = one.ledger
    done = committed(ledger)
    while done < one.total:
        ready.hold()
        answering.ask(ledger.lease(min(BATCHES_AHEAD * per_commit, one.total - done)))
        count = min(per_commit, one.total - done)
        ready.add(answering.answered(SECONDS_PER_LOOK), urgent=not answering.in_hand())
        while count and (groups := ledger.take(count)) is not None:
            answering.check([group for group in groups if group.prompt.prompt_id not in known], ledger.step + 1)
            ledger.commit(ledger.step + 1)
            done += count
            tell(groups, done, one.total)
            count = min(per_commit, one.total - done)


class _Ready:
    """Answers on their way to the ledger."""

    def __init__(self, ledger: Ledger, answering: Answering) -> None:
        self._ledger, self._answering = ledger, answering
        self._groups: list[Group] = []
        self._due = time.monotonic() + SECONDS_PER_APPEND

    def hold(self) -> None:
        """Leases of what is worked on, or is here, begin anew, also if they have run out during a long call."""
        self._ledger.hold({*self._answering.in_hand(), *(group.group_id for group in self._groups)})

    def add(self, groups: Sequence[Group], urgent: bool) -> None:
        self._groups += groups
        if urgent or time.monotonic() >= self._due:
            self.append()

    def append(self) -> None:
        """Make them durable."""
        if self._groups:
            self.hold()
            for group, verdict in zip(self._groups, self._ledger.append(self._groups), strict=True):
                if verdict is not Appended.STORED:
                    logger.warning("the answer to %s is not used: %s", group.group_id, verdict)
        self._groups = []
        self._due = time.monotonic() + SECONDS_PER_APPEND
