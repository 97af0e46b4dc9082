"""From prompts to scored groups in the ledger: the rollout side of the loop."""

import logging
import time
from typing import TYPE_CHECKING

from rlpipe.data.flow import Failure, Group, GroupRequest, Prompt, Sampling
from rlpipe.data.seeds import sample_seed
from rlpipe.ledger.book import Appended, Lease
from rlpipe.ledger.ledger import Ledger
from rlpipe.pipelines.evaluation import SECONDS_PER_LOOK, group_of
from rlpipe.rewards.stage import RewardFailed, RewardStage
from rlpipe.rollout.episodes import Rollouts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SECONDS_PER_APPEND = 0.25
"""How long an answer may wait for others, to become durable together with them."""


class Sampler:
    """Leases prompts, has the engines answer them and the reward stage score the answers, and fills the ledger."""

    def __init__(
        self,
        model: str,
        ledger: Ledger,
        pool: Rollouts,
        rewards: RewardStage,
        tokenizer: "PreTrainedTokenizerBase",
        sampling: Sampling,
        group_size: int,
        seed: int,
    ) -> None:
        self._model, self._ledger, self._pool, self._rewards = model, ledger, pool, rewards
        self._tokenizer, self._sampling, self._group_size, self._seed = tokenizer, sampling, group_size, seed
        self._unanswered: dict[str, Prompt] = {}
        self._scored: list[Group] = []
        """Not in the ledger yet: a death now would have them answered anew."""
        self._appended = time.monotonic()

    def generate(self, count: int) -> None:
        """Answer the next `count` prompts, those aside that are answered already. Scoring goes on beside it and may not
        be done at the end."""
        leases = self._ledger.lease(count)
        self._unanswered |= {lease.lease_id: lease.prompt for lease in leases}
        self._pool.submit(self._model, [self._request(lease) for lease in leases])
        while self._unanswered:
            self._ledger.extend(self._pool.asked() | self._rewards.asked())
            for trajectories in self._pool.finished(SECONDS_PER_LOOK):
                prompt = self._unanswered.pop(trajectories[0].group_id)
                self._rewards.submit(group_of(prompt, trajectories, self._tokenizer))
            self._append(self._rewards.finished(0.0))

    def scored(self, count: int, step: int) -> list[Group]:
        """The step's groups in cursor order, once their rewards are there. Raises `RewardFailed` if too many could not
        be computed; their prompts are asked again when the run goes on, with what failed mended."""
        while (groups := self._ledger.take(count)) is None:
            self._ledger.extend(self._rewards.asked())
            self.generate(count)  # anew those that nobody works on any more
            self._append(self._rewards.finished(SECONDS_PER_LOOK))
        try:
            self._rewards.check(groups, step)
        except RewardFailed:
            self._ledger.ask_again([g.group_id for g in groups if any(isinstance(o, Failure) for o in g.outcomes)])
            raise
        return groups

    def forget(self) -> None:
        """Whatever engines and rewards were asked is not heard any more; the ledger has it back."""
        self._pool.forget()
        self._rewards.forget()
        self._unanswered, self._scored = {}, []
        self._ledger.give_back()

    def _request(self, lease: Lease) -> GroupRequest:
        prompt = lease.prompt
        seeds = tuple(sample_seed(self._seed, prompt.prompt_id, lease.epoch, i) for i in range(self._group_size))
        return GroupRequest(lease.lease_id, prompt.prompt_id, prompt.tokens, seeds, self._sampling)

    def _append(self, groups: list[Group]) -> None:
        """Several at once: making one durable costs as much as making all of them."""
        self._scored += groups
        more = self._unanswered or self._rewards.outstanding
        if not self._scored or (more and time.monotonic() - self._appended < SECONDS_PER_APPEND):
            return
        for group, verdict in zip(self._scored, self._ledger.append(self._scored), strict=True):
            if verdict is not Appended.STORED:
                logger.warning("the answer to %s came too late, or twice (%s); it is not used", group.group_id, verdict)
        self._scored, self._appended = [], time.monotonic()
