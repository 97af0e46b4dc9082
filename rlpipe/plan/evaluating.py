"""The roles of an evaluation: engines of one model after the other, and the reward models that judge the answers."""

from rlpipe.plan import seconds
from rlpipe.plan.batches import Batches
from rlpipe.plan.engines import Generator
from rlpipe.plan.hardware import Rates
from rlpipe.plan.lengths import PROMPT, Lengths
from rlpipe.plan.model_files import ModelFacts
from rlpipe.plan.roles import Role, Setting, engines, generator, scorers
from rlpipe.plan.seconds import Seconds
from rlpipe.recipe.evaluating import EvalRecipe


def largest(recipe: EvalRecipe, setting: Setting) -> tuple[str, ModelFacts]:
    """The model that takes most, with its name: what fits it fits the others."""
    found = {name: setting.find(recipe.alone(name).model) for name in recipe.models}
    name = max(found, key=lambda name: found[name].shapes.size(scores=False))
    return name, found[name]


def engine_of(recipe: EvalRecipe, model: ModelFacts, name: str, setting: Setting) -> Generator:
    """What that model answers on."""
    dtype = recipe.alone(name).model.dtype
    return generator(recipe.rollout, model, dtype, setting, longest(recipe, model), colocated=False)


def roles(recipe: EvalRecipe, model: ModelFacts, made: Generator, setting: Setting) -> list[Role]:
    """What runs at the same time while that model answers."""
    rollout, most = recipe.rollout, longest(recipe, model)
    judges = scorers(recipe.rewards, setting, most, None)
    return [*judges, engines(rollout, made, model.name, setting.gpus(rollout.resources, rollout.tensor_parallel))]


def answering(recipe: EvalRecipe, made: Generator, setting: Setting, rates: Rates) -> Seconds:
    """Of all answers of that model, each at its greatest length."""
    response = min(recipe.rollout.max_new_tokens, made.whole - 1)
    lengths = Lengths(min(setting.prompt or PROMPT, made.whole - response), response)
    prompts, group = recipe.evaluation.prompts, 1 + recipe.evaluation.samples
    return seconds.generation(made, recipe.rollout.engines, prompts, group, lengths, rates)


def asked(recipe: EvalRecipe) -> Batches:
    """What each model is asked."""
    settings, models = recipe.evaluation, len(recipe.models)
    answers = settings.prompts * (1 + settings.samples)
    lines = {
        "models": ", ".join(recipe.models),
        "answers": f"{answers:,} of each: {settings.prompts:,} prompts at most, 1 greedy and {settings.samples} drawn",
    }
    return Batches(lines, {"models": models, "answers_per_model": answers, "answers": models * answers}, ())


def longest(recipe: EvalRecipe, model: ModelFacts) -> int:
    """Tokens of a prompt and its answer."""
    return min(recipe.rollout.max_model_len or PROMPT + recipe.rollout.max_new_tokens, model.context)
