"""The roles of a labelling: engines of the model that responds, then those that judge."""

from rlpipe.plan import seconds
from rlpipe.plan.batches import Batches, records_of
from rlpipe.plan.engines import Generator
from rlpipe.plan.hardware import Rates
from rlpipe.plan.lengths import PROMPT, Lengths
from rlpipe.plan.model_files import ModelFacts
from rlpipe.plan.roles import Role, Setting, engines, generator, scorers
from rlpipe.plan.seconds import Seconds
from rlpipe.recipe.labelling import LabelRecipe, SampledResponses


def moments(recipe: LabelRecipe, model: ModelFacts, setting: Setting) -> dict[str, list[Role]]:
    """What runs at the same time, by what happens then."""
    judges = scorers(recipe.rewards, setting, _longest(recipe, model), None)
    if not isinstance(recipe.responses, SampledResponses):
        return {"while responses are judged": judges}
    rollout = recipe.rollout
    gpus = setting.gpus(rollout.resources, rollout.tensor_parallel)
    answering = engines(rollout, _generator(recipe, model, setting), model.name, gpus)
    return {"while prompts are answered": [answering], "while responses are judged": judges}


def responding(recipe: LabelRecipe, model: ModelFacts, setting: Setting, rates: Rates) -> Seconds:
    """Of all responses, each at its greatest length; nothing where they are read, or where nobody knows how many
    prompts there are."""
    prompts = _prompts(recipe)
    if prompts is None or not isinstance(recipe.responses, SampledResponses):
        return {}
    longest = _longest(recipe, model)
    response = min(recipe.longest_response, longest - 1)
    lengths = Lengths(min(setting.prompt or PROMPT, longest - response), response)
    made = _generator(recipe, model, setting)
    return seconds.generation(made, recipe.rollout.engines, prompts, recipe.responses.count, lengths, rates)


def asked(recipe: LabelRecipe) -> Batches:
    """What there is to be judged."""
    prompts, sampled = _prompts(recipe), isinstance(recipe.responses, SampledResponses)
    said = "as many as data.path holds" if prompts is None else f"{prompts:,}"
    held = f" and {recipe.labels.heldout:,} held-out ones" if recipe.labels.heldout else ""
    each = f"{recipe.responses.count} to each" if sampled else "read from the data"
    numbers = {} if prompts is None else {"prompts": prompts}
    return Batches({"prompts": said + held, "responses": each}, numbers, ())


def _prompts(recipe: LabelRecipe) -> int | None:
    return recipe.labels.prompts or records_of(recipe.data)


def _generator(recipe: LabelRecipe, model: ModelFacts, setting: Setting) -> Generator:
    longest = _longest(recipe, model)
    return generator(recipe.rollout, model, recipe.model.dtype, setting, longest, colocated=False)


def _longest(recipe: LabelRecipe, model: ModelFacts) -> int:
    return min(recipe.rollout.max_model_len or PROMPT + recipe.longest_response, model.context)
