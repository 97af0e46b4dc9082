"""What a model's answers, their scores and judgements hang on, as keys."""

from typing import TYPE_CHECKING, Any

from rlpipe.pipelines import contents
from rlpipe.recipe.judge import JudgeReward

if TYPE_CHECKING:
    from rlpipe.pipelines.evaluating.served import Served

_ROLLOUT = ("engine", "max_new_tokens", "max_model_len", "stop_token_ids")
_FILES = {"path", "adapter", "chat_template"}
"""Of a model: by what stands in them."""


def of(model: "Served") -> str:
    """Of its answers and their scores: questions, sampling, rewards and environment, and all of their files. A model
    from scratch is what the recipe and the seed make it."""
    recipe = model.recipe
    environment = recipe.environment.model_dump()
    asked = [[prompt.prompt_id, prompt.text, prompt.columns] for prompt in model.prompts[1]]
    how = [recipe.seed, recipe.evaluation.model_dump(), [getattr(recipe.rollout, key) for key in _ROLLOUT]]
    judged = [about_reward(reward) | {"weight": reward.weight} for reward in recipe.mix]
    spec = recipe.models[model.name].model_dump(exclude=_FILES)
    return contents.digest([asked, how, judged, environment, contents.files_in(environment), spec, weights(model)])


def of_judgements(judge: JudgeReward, one: "Served", base: "Served") -> str:
    """Of what a judge says of two models."""
    asked = {key: value for key, value in about_reward(judge).items() if key not in ("name", "weight")}
    return contents.digest([asked, one.key, base.key])


def about_reward(reward: Any) -> dict[str, Any]:
    """A judge's whole constitution, too."""
    constitution = getattr(reward, "constitution", None)
    return contents.about_reward(reward) | {"constitution": contents.files_in(constitution)}


def weights(model: "Served") -> list[list[str]]:
    """The files of a model and its adapter, by content: one that was trained anew is another one."""
    folders = [] if model.from_scratch else [model.model_path]
    return [contents.model(str(folder)) for folder in (*folders, *([model.adapter] if model.adapter else []))]
