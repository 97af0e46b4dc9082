"""What was asked, as a key: as long as it is the same, so is the answer, and nobody is asked again.

A prompt's responses hang on the prompt, the model, how it is sampled and what its environment says; its labels on those
responses and on who judges them by what. Where a file of principles or a template is edited, the keys of those prompts
change that it concerns, and no others.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlpipe.data.flow import Group, Prompt
from rlpipe.pipelines import contents
from rlpipe.pipelines.judges import drawer
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.critique import ConstitutionEnvironment
from rlpipe.recipe.environment import PythonEnvironment, SingleTurn
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.labelling import LabelRecipe, ReadResponses
from rlpipe.rewards.judging.judged import Drawn
from rlpipe.rollout.environments.critique import CritiqueAndRevision


def asked(stage: Stage, recipe: LabelRecipe, prompts: list[Prompt], part: str) -> list[Prompt]:
    """The prompts under keys of what their responses hang on, each once: `part-KEY`."""
    about, concerns = _about_responses(stage, recipe), _said_by(recipe)
    keyed = [
        replace(p, prompt_id=f"{part}-{contents.digest([about, *_content(recipe, p), concerns(p)])}") for p in prompts
    ]
    return list({prompt.prompt_id: prompt for prompt in keyed}.values())


def judged(recipe: LabelRecipe, groups: list[Group]) -> list[Group]:
    """The groups under keys of what their labels hang on."""
    about = contents.about_rewards(recipe.rewards)
    draws = [drawer(reward) for reward in recipe.rewards.mix if isinstance(reward, JudgeReward)]
    return [_judged(group, [about, [_words(draw(group.prompt)) for draw in draws]]) for group in groups]


def _words(principle: Drawn | None) -> str | None:
    """Not the version of its constitution, which counts up when another principle is edited."""
    return None if principle is None else principle.text


def _judged(group: Group, about: Any) -> Group:
    prompt = group.prompt
    said = [group.completions, [[t.role, t.text] for turns in group.conversations for t in turns]]
    digest = contents.digest([about, prompt.prompt_id, said, prompt.columns])
    part = prompt.prompt_id.partition("-")[0]
    return replace(group, prompt=replace(prompt, prompt_id=f"{part}-{digest}"))


def _about_responses(stage: Stage, recipe: LabelRecipe) -> Any:
    if isinstance(recipe.responses, ReadResponses):
        return recipe.responses.model_dump()
    rollout = recipe.rollout
    how = [rollout.engine, rollout.max_new_tokens, rollout.temperature, list(stage.stop_token_ids), stage.dtype]
    model = [*contents.model(stage.model_path), getattr(recipe.model, "revision", None), rollout.max_model_len]
    return [model, how, recipe.responses.model_dump(), recipe.seed]


def _said_by(recipe: LabelRecipe) -> Callable[[Prompt], Any]:
    """What the environment says to a prompt, as far as it is known before."""
    environment = recipe.environment
    match environment:
        case ConstitutionEnvironment():
            asking, samples = CritiqueAndRevision(environment), recipe.responses.count
            return lambda prompt: asking.what_decides(prompt.text, samples)
        case PythonEnvironment():
            how = {"implementation", "processes", "batch", "secrets"}
            settings = environment.model_dump(exclude=how) | contents.code(environment.implementation)
            return lambda prompt: settings
    settings = environment.model_dump()
    return lambda prompt: settings


def _content(recipe: LabelRecipe, prompt: Prompt) -> list[Any]:
    """Columns count where an environment sees them, or where the responses stand in them."""
    seen = not isinstance(recipe.environment, SingleTurn) or isinstance(recipe.responses, ReadResponses)
    return [prompt.tokens.tolist(), prompt.columns if seen else None]
