"""Going on with a stage that ended early: from its newest checkpoint, over the steps that were committed since.

Those steps are trained again on the trajectories that the ledger stored: nothing is generated or rewarded twice, and
every number comes out as it was.
"""

from dataclasses import dataclass

from rlpipe.ledger.ledger import Ledger
from rlpipe.observe.events import EventLog
from rlpipe.pipelines.online.metrics import sample_metrics
from rlpipe.pipelines.online.publisher import Publisher
from rlpipe.pipelines.online.saving import Saving
from rlpipe.pipelines.online.trainer import Trainer


@dataclass(frozen=True, slots=True)
class CatchingUp:
    """What it takes to bring roles that have just started to where the ledger stands."""

    ledger: Ledger
    trainer: Trainer
    publisher: Publisher
    saving: Saving
    events: EventLog

    def run(self) -> int:
        """Returns the last committed step, whose weights the roles and the engines have now; 0 in a stage that
        begins."""
        saved, last = self.saving.load(), self.ledger.step
        if last:
            says = f"resuming from step {saved}, replaying {last - saved} steps from their stored trajectories"
            self.events.note(says)
            with self.events.phase("replay", says=says):
                if saved:
                    self.publisher.publish(version=saved)
                for step in range(saved + 1, last + 1):
                    self._replay(step)
                    self.events.progress(f"{step - saved}/{last - saved}")
        return last

    def _replay(self, step: int) -> None:
        """As `Loop._step`; its time was measured when it was done first."""
        groups, dropped = self.ledger.committed(step)
        batch, metrics = self.trainer.batch(groups)
        metrics |= self.trainer.update(batch, step)
        metrics |= self.publisher.publish(version=step)
        self.events.commit(step, version=step)
        self.events.metrics(step, metrics | sample_metrics(groups, dropped))
