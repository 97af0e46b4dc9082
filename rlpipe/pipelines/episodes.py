"""The environment of a stage, and what its samples go through: the pool itself, or episodes over it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain

from rlpipe.data.flow import Prompt
from rlpipe.pipelines.fitting import longest
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.environment import SingleTurn
from rlpipe.rollout.environments.stage import EnvironmentStage, build
from rlpipe.rollout.episodes import EpisodeLimits, Episodes, Rollouts
from rlpipe.rollout.pool import EnginePool
from rlpipe.rollout.turn_marks import TurnMarks


def environment_of(stage: Stage) -> AbstractContextManager[EnvironmentStage | None]:
    """The recipe's environment, starting in the background; None where a response is a single turn."""
    return build(stage.recipe.environment, stage.recipe.deadlines, stage.debug) or nullcontext()


def over(
    pool: EnginePool, environment: EnvironmentStage | None, stage: Stage, asked: Sequence[Prompt] | None = None
) -> Rollouts:
    """What samplers and evaluators ask. Waits until the environment is ready. `asked` are the prompts, if they are not
    the stage's own."""
    recipe = stage.recipe
    if environment is None or isinstance(recipe.environment, SingleTurn):
        return pool
    environment.ready()
    prompts = {p.prompt_id: p for p in (chain(*stage.prompts) if asked is None else asked)}
    limits = EpisodeLimits(recipe.environment.max_turns, longest(recipe.rollout, stage))
    decode = partial(stage.tokenizer.decode, skip_special_tokens=True)
    return Episodes(pool, environment, prompts, TurnMarks(stage.tokenizer, stage.records.chat), decode, limits)


def longest_episode(stage: Stage) -> float:
    """Seconds that generating a response may take, by the recipe's deadlines."""
    recipe = stage.recipe
    if isinstance(recipe.environment, SingleTurn):
        return recipe.deadlines.rollout
    # The environment is asked once more than the policy speaks: for the state of the episode.
    turns = recipe.environment.max_turns
    return turns * recipe.deadlines.rollout + (turns + 1) * recipe.deadlines.environment
