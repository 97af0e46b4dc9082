"""From prompts to scored groups in the ledger: the rollout side of the loop."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from rlpipe.data.flow import Failure, Group, GroupRequest, Sampling
from rlpipe.data.seeds import sample_seed
from rlpipe.ledger.book import Appended, Lease
from rlpipe.ledger.ledger import Ledger
from rlpipe.pipelines.answers import Answers, Ask
from rlpipe.pipelines.online.admission import Admission
from rlpipe.rewards.stage import RewardFailed, RewardStage
from rlpipe.runtime.handle import Pending, first_ready

logger = logging.getLogger(__name__)

SECONDS_PER_APPEND = 0.25
"""How long an answer may wait for others, to become durable together with them."""
APPENDING_SHARE = 0.1
"""Of the driver's time: where much is in flight, an append costs more, and answers wait longer for others."""
SECONDS_PER_LOOK = 0.25
"""How long engines and rewards are waited for at a time."""


class Sampler:
    """Leases prompts as far ahead as is admitted, has them answered and scored, and fills the ledger.

    That goes on while the trainer waits for its roles, if these waits are `first_ready`.
    """

    def __init__(
        self,
        ledger: Ledger,
        admission: Admission,
        answers: Answers,
        check: "RewardStage",
        sampling: Sampling,
        group_size: int,
        seed: int,
        lost_with_training: bool = False,
    ) -> None:
        """`check` says whether too many rewards of a step have failed; `lost_with_training`, whether rewards start
        again together with the training roles."""
        self._lost_with_training = lost_with_training
        self._ledger, self._admission, self._answers, self._check = ledger, admission, answers, check
        self._sampling, self._group_size, self._seed = sampling, group_size, seed
        self._scored: list[Group] = []
        """Not in the ledger yet: a death now would have them answered anew."""
        self._next_append = time.monotonic() + SECONDS_PER_APPEND

    def generate(self, count: int) -> None:
        """Work until engines have answered all of the next `count` prompts. Scoring goes on beside it and may not be
        done at the end."""
        self._admit()
        waiting = list(self._ledger.lacking(count) & self._answers.generating())
        while waiting:  # one id at a time: what is done is not asked again, or a look would cost as much as a step
            if waiting[-1] in self._answers.generating():
                self.attend()
            else:
                waiting.pop()

    def scored(self, count: int, step: int) -> list[Group]:
        """The step's groups in cursor order, once their rewards are there. Raises `RewardFailed` if too many could not
        be computed; their prompts are asked again when the run goes on, with what failed mended."""
        while (groups := self._ledger.take(count)) is None:
            self._admit()  # anew those that nobody works on any more
            self._answers.work_off()
            self._answers.look(SECONDS_PER_LOOK)
            self.keep(urgent=self._ledger.lacking(count) <= {group.group_id for group in self._scored})
        try:
            self._check.check(groups, step)
        except RewardFailed:
            self._ledger.ask_again([g.group_id for g in groups if any(isinstance(o, Failure) for o in g.outcomes)])
            raise
        return groups

    def attend(self) -> None:
        """Take in what engines and rewards have."""
        self._answers.look(SECONDS_PER_LOOK)
        self.keep()

    def first_ready(self, pendings: Sequence[Pending[Any]], seconds: float) -> list[Pending[Any]]:
        """As `handle.first_ready`, and answers come in meanwhile."""
        until = time.monotonic() + seconds
        while not (ready := first_ready(pendings, 0.0)) and time.monotonic() < until:
            self._answers.look(min(SECONDS_PER_LOOK, max(0.0, until - time.monotonic())), pendings)
            self.keep()
        return ready

    def keep(self, urgent: bool = False) -> None:
        """What is scored goes into the ledger, several at once unless it is `urgent`: making one durable costs as much
        as making all of them. What is worked on keeps its lease."""
        began = time.monotonic()
        if not self._scored or not (urgent or began >= self._next_append):
            return
        self._ledger.hold(self._in_hand())
        for group, verdict in zip(self._scored, self._ledger.append(self._scored), strict=True):
            if verdict is not Appended.STORED:
                logger.warning("the answer to %s came too late, or twice (%s); it is not used", group.group_id, verdict)
        self._scored.clear()
        took = time.monotonic() - began
        self._next_append = began + took + max(SECONDS_PER_APPEND, took / APPENDING_SHARE)

    def interrupt(self) -> None:
        """Training roles are lost: what was taken for the step can be taken again, and rewards that are lost with them
        are not asked. Engines go on with what they were asked."""
        self._ledger.give_back()
        if self._lost_with_training:
            self._answers.pause_scoring()

    def go_on(self) -> None:
        """They are there again."""
        self._answers.resume_scoring()

    def start_over(self) -> None:
        """What was sampled and is not trained is of weights that are gone: it is asked again."""
        self._answers.forget(self._in_hand())
        self._scored.clear()
        self._ledger.hold(())
        self._ledger.ask_all_again()

    def _in_hand(self) -> set[str]:
        """The leases that engines and rewards work on, or whose answers are on the way to the ledger."""
        scored = {group.group_id for group in self._scored}
        return scored | self._answers.generating() | self._answers.scoring()

    def _admit(self) -> None:
        self._ledger.hold(self._in_hand())
        leases = self._ledger.lease(self._admission.ahead(self._ledger))
        self._answers.ask([Ask(self._request(lease), lease.prompt) for lease in leases], self._scored.append)

    def _request(self, lease: Lease) -> GroupRequest:
        prompt = lease.prompt
        seeds = tuple(sample_seed(self._seed, prompt.prompt_id, lease.epoch, i) for i in range(self._group_size))
        return GroupRequest(lease.lease_id, prompt.prompt_id, prompt.tokens, seeds, self._sampling)
