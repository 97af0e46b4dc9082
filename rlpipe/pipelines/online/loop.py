"""The online loop.

    cursor -> lease -> generate -> score -> append      Sampler, into the ledger
    take -> reference, advantages -> update -> commit   Trainer
    publish weights v+1, and prove that they arrived    Publisher
    evaluate -> write a checkpoint                      Evaluator, Saving

Named on the right is what does it. A run that goes on begins with what was done: CatchingUp. How far the first line may
be ahead of the others is Admission's (`run.max_staleness`): not at all, or so far that it goes on while the others are
at work.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from rlpipe.data.flow import Group
from rlpipe.ledger.ledger import Ledger
from rlpipe.observe.events import EventLog
from rlpipe.pipelines.evaluation import Evaluated, said_in, shown
from rlpipe.pipelines.online.admission import Admission
from rlpipe.pipelines.online.catching_up import CatchingUp
from rlpipe.pipelines.online.dynamic_sampling import flat, replace_flat
from rlpipe.pipelines.online.engine_watch import EngineWatch
from rlpipe.pipelines.online.gang import Gang
from rlpipe.pipelines.online.metrics import sample_metrics, speed_metrics
from rlpipe.pipelines.online.publisher import Publisher
from rlpipe.pipelines.online.sampler import Sampler
from rlpipe.pipelines.online.saving import Saving
from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.pipelines.online.turns import Turns
from rlpipe.recipe.algorithm import Schedule


@dataclass(frozen=True, slots=True)
class Loop:
    """Everything the loop works with, started and ready."""

    schedule: Schedule
    resampling_rounds: int
    """How often a step replaces groups that teach nothing; 0 without dynamic sampling."""
    evaluate_every: int
    ledger: Ledger
    sampler: Sampler
    trainer: Trainer
    publisher: Publisher
    evaluate: Callable[[], Evaluated]
    saving: Saving
    gang: Gang
    turns: Turns
    admission: Admission
    engine_watch: EngineWatch
    catching_up: CatchingUp
    finish: Callable[[], None]
    """Writes the result."""
    events: EventLog

    def run(self) -> None:
        """All steps that are not committed yet, and the result. Step s trains on samples of weight version s - 1 and
        publishes version s."""
        done = None
        while True:
            try:
                if done is None:
                    done = self._begin()
                elif done < self.schedule.steps:
                    done = self._advance(done + 1)
                else:
                    self.turns.train()
                    return self.finish()
            except Exception as fault:  # one of a lost process is mended, any other raised
                self.sampler.interrupt()
                self.publisher.withdraw()
                self.turns.train()
                self.gang.replace(fault, self.ledger.step, self.sampler.attend)
                self.sampler.go_on()
                done = None

    def _begin(self) -> int:
        """Bring roles and engines to where the ledger stands; returns the last committed step."""
        done = self.catching_up.run()
        self._conclude(done)
        return done

    def _advance(self, step: int) -> int:
        self._step(step)
        self._conclude(step)
        return step

    def _step(self, step: int) -> None:
        started, phase = time.perf_counter(), self.events.phase
        self.engine_watch.begin()
        groups, dropped = self._groups(step)
        self.turns.train()
        self.publisher.hold()
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
        metrics |= sample_metrics(groups, dropped) | speed_metrics(groups, dropped, seconds)
        metrics |= self.admission.hear(groups, metrics, step) | self.engine_watch.tell(step)
        self.events.metrics(step, metrics)

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
        self.turns.sample()
        with self.events.phase("generate", step):
            self.sampler.generate(count)
        with self.events.phase("score", step):
            return self.sampler.scored(count, step)

    def _conclude(self, step: int) -> None:
        """What is due after a step, or before the first one. A checkpoint comes last, and so says that all is done."""
        if self.saving.stands(step):
            return
        due = step % self.evaluate_every == 0 or step == self.schedule.steps
        evaluation = self._evaluated(step) if due else None
        if self.saving.due(step):
            self.turns.train()
            self.saving.save(step, evaluation)

    def _evaluated(self, step: int) -> dict[str, float]:
        self.turns.sample()
        with self.events.phase("evaluate", step, says="answering held-out prompts"):
            found = self.evaluate()
        self.events.evaluation(step, found.metrics, found.samples, asked=found.asked)
        return found.metrics
