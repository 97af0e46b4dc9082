"""Which prompts may be answered now: those whose step can still train on them within `run.max_staleness`.

A policy version is the step that published it. Step s trains the policy of version s - 1; an answer whose first token
came from version v is s - 1 - v versions old then. Steps train in the order in which prompts are drawn, whatever is
answered first: so what version v is the first to answer has to be of step v + 1 + max_staleness at the latest,

    in flight and answered after step v   <=   (max_staleness + 1) * prompts_per_step

and no answer is ever discarded for its age. A step waits for its slowest answer, which has had all the time of the
steps before it, in which engines go on with the prompts of later ones. Dropping the late ones in its place would teach
short answers (the bound on what is in flight is AReaL's, Fu et al. 2025, arXiv 2505.24298, section 5.1, equation 3).
"""

import logging
import math
from collections.abc import Mapping, Sequence

from rlpipe.data.flow import Group
from rlpipe.ledger.ledger import Ledger
from rlpipe.pipelines.online.metrics import staleness_metrics
from rlpipe.recipe.algorithm import Schedule
from rlpipe.recipe.run import Run

logger = logging.getLogger(__name__)

EFFECTIVE_SAMPLES = "mismatch/effective_samples"


class Admission:
    """How far ahead of the training prompts are handed out; at 0 those of the next step alone."""

    def __init__(self, schedule: Schedule, settings: Run) -> None:
        self._schedule, self._settings = schedule, settings
        self._admitted = settings.max_staleness

    def ahead(self, ledger: Ledger) -> int:
        """How many prompts that are not taken may be leased or answered now. Only between a publish and the next
        update, when engines serve the version of the last committed step."""
        steps = min(self._admitted + 1, self._schedule.steps - ledger.step)
        return steps * self._schedule.prompts_per_step - ledger.taken

    def hear(self, groups: Sequence[Group], metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """After a step was trained on these: admit a version less if its effective sample size was below the recipe's
        floor, and one more if it was not. Returns what to tell of its staleness; nothing where all is on-policy."""
        most, floor = self._settings.max_staleness, self._settings.min_effective_sample_size
        if not most:
            return {}
        used, found = self._admitted, metrics.get(EFFECTIVE_SAMPLES, math.nan)
        if found < floor:
            self._admitted = max(0, used - 1)
            logger.warning(
                "step %d: the effective sample size is %.3f of the tokens, below run.min_effective_sample_size=%g: "
                "prompts are handed out %d steps ahead, %s", step, found, floor, self._admitted,
                "one less than before" if self._admitted < used else "which is the least",
            )  # fmt: skip
        elif found >= floor:
            self._admitted = min(most, used + 1)
            if self._admitted > used:
                logger.info("step %d: the effective sample size is %.3f again", step, found)
        return staleness_metrics(groups, step, most) | {"staleness/admitted": float(used)}

    def state(self) -> dict[str, float]:
        """What a checkpoint must hold."""
        return {"admitted": self._admitted}

    def load(self, state: Mapping[str, float]) -> None:
        """Go on from `state`, in a recipe that may allow less."""
        self._admitted = min(int(state["admitted"]), self._settings.max_staleness)
