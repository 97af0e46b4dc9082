"""Committed steps of an RL stage, trained once more in this process: without engines, and without rewards."""

from collections.abc import Callable
from contextlib import ExitStack

from rlpipe.algorithms.online import OnlineAlgorithm
from rlpipe.data.flow import TokenBatch
from rlpipe.pipelines import roles
from rlpipe.pipelines.fitting import that_fit
from rlpipe.pipelines.online.admission import Admission
from rlpipe.pipelines.online.catching_up import trained_again
from rlpipe.pipelines.online.rl import learning, ledger_of, saving_of, trainer_of
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.tasks import RlRecipe
from rlpipe.runtime.handle import first_ready

Look = Callable[[TokenBatch], None]


def go(stage: Stage, recipe: RlRecipe, step: int, look: Look) -> dict[int, dict[str, float]]:
    """The steps from the checkpoint in the stage's directory, or the first one, up to `step`; the metrics of each.
    `look` is shown the batch of the last one before it is learned from."""
    with ExitStack() as stack:
        stack.callback(stage.runtime.stop)
        algorithm = OnlineAlgorithm(roles.algorithm_settings(recipe), recipe.longest_response)
        handles = stage.runtime.start(learning(stage, recipe, algorithm)).handles
        prompts = that_fit(stage.prompts[0], recipe.rollout, stage)
        ledger = stack.enter_context(ledger_of(stage, recipe, prompts, [each.name for each in recipe.rewards.mix]))
        trainer = trainer_of(recipe, algorithm, handles, first_ready)
        admission = Admission(recipe.schedule, recipe.run)
        saving = saving_of(stage, recipe, handles, {"kl": trainer.kl, "admission": admission}, ledger)
        before = range(saving.load() + 1, step)
        metrics = {each: trained_again(each, ledger, trainer, admission) for each in before}
        return metrics | {step: trained_again(step, ledger, trainer, admission, look)}


def stop(batch: TokenBatch) -> None:
    """A `Look` that stops in the debugger."""
    breakpoint()
    return  # `batch` is learned from next. `p batch.lengths_B` shows it, `u` goes up to the trainer, `c` goes on.
