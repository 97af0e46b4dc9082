"""Engines, rewards and an environment, started to answer prompts without training."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from rlpipe.pipelines import reward_models, roles
from rlpipe.pipelines.answers import Answers
from rlpipe.pipelines.episodes import environment_of, over
from rlpipe.pipelines.stage import Stage
from rlpipe.rewards.stage import RewardStage
from rlpipe.rollout.pool import EnginePool
from rlpipe.runtime.roles import RoleSpec


@dataclass(frozen=True, slots=True)
class Serving:
    """What has been started."""

    answers: Answers
    pool: EnginePool
    scoring: RewardStage


@contextmanager
def answering(stage: Stage, engines: RoleSpec, says: str) -> Iterator[Serving]:
    """All of it runs within the block, and nothing after it. Without rewards in the recipe nobody judges."""
    recipe = stage.recipe
    with ExitStack() as stack:
        stack.callback(stage.runtime.stop)
        with stage.events.phase("start", says=says):
            started = stage.runtime.start([*reward_models.specs(stage), engines])
            scoring = stack.enter_context(reward_models.scoring(stage, recipe.rewards, started.handles))
            environment = stack.enter_context(environment_of(stage))
            scoring.ready()  # a reward that cannot be loaded is told while the models still load
            started.ready()
        pool = EnginePool({roles.POLICY: started.handles["engine"]}, recipe.deadlines, recipe.rollout.max_restarts)
        answers = Answers(roles.POLICY, over(pool, environment, stage), scoring, stage.tokenizer)
        yield Serving(answers, pool, scoring)
