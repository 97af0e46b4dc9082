"""The online loop.

    cursor -> lease -> generate -> score -> append      Sampler, into the ledger
    take -> reference, advantages -> update -> commit   Trainer
    publish weights v+1, and prove that they arrived    Publisher

Named on the right is what does it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from rlpipe.data.flow import Group
from rlpipe.ledger.ledger import Ledger
from rlpipe.observe.events import EventLog
from rlpipe.pipelines.evaluation import Evaluated, said_in, shown
from rlpipe.pipelines.online.dynamic_sampling import flat, replace_flat
from rlpipe.pipelines.online.metrics import sample_metrics
from rlpipe.pipelines.online.publisher import Publisher
from rlpipe.pipelines.online.sampler import Sampler
from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.recipe.algorithm import Schedule
from rlpipe.rewards.stage import RewardStage


@dataclass(frozen=True, slots=True)
class Loop:
    """Everything the loop works with, started and ready."""

    schedule: Schedule
    resampling_rounds: int
    """How often a step replaces groups that teach nothing; 0 without dynamic sampling."""
    evaluate_every: int
    ledger: Ledger
    sampler: Sampler
    rewards: RewardStage
    trainer: Trainer
    publisher: Publisher
    evaluate: Callable[[], Evaluated]
    events: EventLog

    def run(self) -> None:
        """All steps. Step s trains on samples of weight version s - 1 and publishes version s."""
        with self.events.phase("publish", says="publishing the first weights, and checking that they arrived"):
            self.publisher.publish(version=0)
        self._evaluate(step=0)
        for step in range(1, self.schedule.steps + 1):
            self._step(step)
            if step % self.evaluate_every == 0 or step == self.schedule.steps:
                self._evaluate(step)

    def _step(self, step: int) -> None:
        started, phase = time.perf_counter(), self.events.phase
        groups, dropped = self._groups(step)
        with phase("prepare", step):
            batch, metrics = self.trainer.batch(groups)
        self.events.sample(step, groups[0].prompt.text, said_in(groups[0], 0), **shown(groups[0].outcomes[0]))
        with phase("train", step):
            metrics |= self.trainer.update(batch, step)
        with phase("record", step):
            self.ledger.commit(step, batch.advantages_N[batch.offsets_B1[1:] - 1].tolist())
        with phase("publish", step):
            metrics |= self.publisher.publish(version=step)
        self.events.commit(step, version=step)
        seconds = time.perf_counter() - started
        self.events.metrics(step, metrics | sample_metrics(groups, dropped, seconds))

    def _groups(self, step: int) -> tuple[list[Group], list[Group]]:
        """The step's groups, and those that dynamic sampling dropped."""
        groups, dropped = replace_flat(
            self._sampled(step, self.schedule.prompts_per_step),
            self.resampling_rounds,
            self.ledger.drop,
            lambda count: self._sampled(step, count),
        )
        useless = int(flat(groups).sum())
        if self.resampling_rounds and useless:
            self.events.warning(
                f"step {step}: {useless} of {len(groups)} groups still have equal rewards after "
                f"{self.resampling_rounds} rounds of dynamic sampling; the step learns from the others. Other prompts "
                "would teach more."
            )
        return groups, dropped

    def _sampled(self, step: int, count: int) -> list[Group]:
        with self.events.phase("generate", step):
            self.sampler.generate(count)
        with self.events.phase("score", step):
            groups = self.sampler.scored(count)
            self.rewards.check(groups, step)
        return groups

    def _evaluate(self, step: int) -> None:
        with self.events.phase("evaluate", step, says="answering held-out prompts"):
            found = self.evaluate()
        self.events.evaluation(step, found.metrics, found.samples)
