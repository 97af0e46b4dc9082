"""An SFT stage: measure the model it starts from, train, measure the result."""

from contextlib import ExitStack
from pathlib import Path

from rlpipe.pipelines import roles
from rlpipe.pipelines.episodes import environment_of, over
from rlpipe.pipelines.evaluation import Evaluator
from rlpipe.pipelines.offline.sft import run_sft
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.rewards import RewardMix
from rlpipe.recipe.tasks import SftRecipe
from rlpipe.rewards import stage as rewards
from rlpipe.rollout.pool import EnginePool


def run_sft_stage(stage: Stage, recipe: SftRecipe) -> None:
    """Train `recipe` in `stage`; the result lies in `stage.result`."""
    steps = recipe.train.max_steps
    if recipe.rewards is not None:
        _evaluate(stage, recipe, recipe.rewards, stage.model_path, step=0)
    with stage.events.phase("train", says=f"supervised fine-tuning: {steps} steps of TRL's SFTTrainer"):
        run_sft(recipe, stage.model_path, stage.records, stage.result, stage.debug, stage.events.metrics)
    if recipe.rewards is not None:
        _evaluate(stage, recipe, recipe.rewards, str(stage.result), step=steps)


def _evaluate(stage: Stage, recipe: SftRecipe, mix: RewardMix, model_path: str, step: int) -> None:
    """Held-out prompts to a fresh engine on these weights: nothing can be left of others."""
    with ExitStack() as stack:
        stack.callback(stage.runtime.stop)
        with stage.events.phase("start", says=f"starting {recipe.rollout.engine} to answer held-out prompts"):
            scoring = stack.enter_context(rewards.build(mix, Path(), recipe.deadlines, stage.debug))
            environment = stack.enter_context(environment_of(stage))
            started = stage.runtime.start([roles.engines(stage, model_path)])
            _, heldout = stage.prompts
            started.ready()
            scoring.ready()
        evaluator = Evaluator(stage, heldout)
        pool = over(EnginePool({roles.POLICY: started.handles["engine"]}, recipe.deadlines), environment, stage)
        with stage.events.phase("evaluate", says="answering held-out prompts"):
            found = evaluator.run(pool, scoring, roles.POLICY)
    stage.events.evaluation(step, found.metrics, found.samples)
