"""Going on with a stage that ended early: from its newest checkpoint, over the steps that were committed since.

Those steps are trained again on the trajectories that the ledger stored: nothing is generated or rewarded twice, and
every number comes out as it was.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rlpipe.data.flow import TokenBatch
from rlpipe.ledger.ledger import Ledger
from rlpipe.observe.events import EventLog
from rlpipe.pipelines.online.admission import Admission
from rlpipe.pipelines.online.metrics import sample_metrics
from rlpipe.pipelines.online.publisher import Publisher
from rlpipe.pipelines.online.sampler import Sampler
from rlpipe.pipelines.online.saving import Saving
from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.pipelines.online.turns import Turns


@dataclass(frozen=True, slots=True)
class CatchingUp:
    """What it takes to bring roles that have just started to where the ledger stands."""

    ledger: Ledger
    admission: Admission
    trainer: Trainer
    publisher: Publisher
    saving: Saving
    sampler: Sampler
    turns: Turns
    events: EventLog

    def run(self) -> int:
        """Returns the last committed step, whose weights the roles and the engines have now; 0 in a stage that
        begins."""
        began = self.publisher.version is None
        self.turns.train()
        if began:
            with self.events.phase("publish", says="publishing the first weights, and checking that they arrived"):
                self.publisher.publish(version=0)
        last = self.ledger.step
        if last or not began:
            self.turns.train()
            self.publisher.hold()
        saved = self.saving.load()
        if last:
            says = f"resuming from step {saved}, replaying {last - saved} steps from their stored trajectories"
            self.events.note(says)
            with self.events.phase("replay", says=says):
                for step in range(saved + 1, last + 1):
                    self._replay(step)
                    self.events.progress(f"{step - saved}/{last - saved}")
        if last or not began:
            self._publish(last)
        return last

    def _replay(self, step: int) -> None:
        """As `Loop._step`, but for what engines do; its time was measured when it was done first."""
        self.events.metrics(step, trained_again(step, self.ledger, self.trainer, self.admission))

    def _publish(self, last: int) -> None:
        """Only what is served from here on: engines that were not lost have gone on with the same weights. (If they
        were not to the last bit the same, as on a GPU, what these engines sampled is of no known version.)"""
        version, digest = self.publisher.version, self.publisher.digest
        with self.events.phase("publish", last or None):
            metrics = self.publisher.publish(version=last)
        if version == last and digest != self.publisher.digest:
            self.events.warning(
                f"the weights of version {last} have not come out exactly as before; what was sampled and is not "
                "trained yet is sampled again"
            )
            self.sampler.start_over()
        if last:
            self.events.commit(last, version=last)
            self.events.metrics(last, metrics)


def trained_again(
    step: int,
    ledger: Ledger,
    trainer: Trainer,
    admission: Admission,
    look: Callable[[TokenBatch], None] = lambda _: None,
) -> dict[str, float]:
    """Train a committed step on what it was trained on, from where the step before has left the roles; its metrics, as
    far as they do not hang on time. `look` is shown the batch before it is learned from."""
    groups, dropped = ledger.committed(step)
    batch, metrics = trainer.batch(groups)
    look(batch)
    metrics |= trainer.update(batch, step)
    return metrics | sample_metrics(groups, dropped) | admission.hear(groups, metrics, step)
