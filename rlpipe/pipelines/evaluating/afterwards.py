"""What a pipeline's end shows without being asked: base and the model of every stage, on the same prompts.

Stages that are evaluated on the same held-out prompts by the same rewards have shown it already. Where they are not
(other data, other rewards, a stage without any), all of them are asked what the last judged stage asks.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from rlpipe.data.remote import storage_of
from rlpipe.models.folders import is_adapter, is_model
from rlpipe.observe import events
from rlpipe.pipelines.stage import FINAL_ADAPTER, FINAL_MODEL
from rlpipe.recipe.data import MixtureData
from rlpipe.recipe.evaluating import EvalRecipe, EvaluatedModel
from rlpipe.recipe.labelling import LabelRecipe
from rlpipe.recipe.model import ScratchModel
from rlpipe.recipe.references import resolve
from rlpipe.recipe.tasks import PipelineRecipe, RewardModelRecipe, StageRecipe

BASE = "base"
Stages = Mapping[str, tuple[StageRecipe, Path]]
_TAKEN = ("rewards", "environment", "rollout", "evaluation", "deadlines", "tracking")


def name_of(recipe: PipelineRecipe) -> str:
    """Of the stage that compares; no other is called so."""
    name = "comparison"
    while name in recipe.stages:
        name += "-2"
    return name


def comparison_of(recipe: PipelineRecipe, stages: Stages) -> EvalRecipe | None:
    """What is left to ask when all stages are done; None where nothing is, or nobody says what an answer is worth."""
    made = dict(_candidates(recipe, stages))
    judged = [name for name, (task, _) in made.items() if task.rewards is not None]
    if not judged or _have_shown_it(made) or any(isinstance(task, EvalRecipe) for task, _ in stages.values()):
        return None
    models = {BASE: _base(*next(iter(made.values())))} | {name: _result(*each) for name, each in made.items()}
    task = resolve(made[judged[-1]][0], {name: str(place) for name, (_, place) in stages.items()})
    data = next(iter(task.data.sources.values())) if isinstance(task.data, MixtureData) else task.data
    taken = {key: getattr(task, key).model_dump() for key in _TAKEN if hasattr(task, key)}
    for reward in taken["rewards"]["mix"]:
        reward.pop("share", None)
    given = {"task": "eval", "name": name_of(recipe), "seed": task.seed, "data": data.model_dump()}
    return EvalRecipe.model_validate(given | taken | {"models": models, "refusals": []})


def _candidates(recipe: PipelineRecipe, stages: Stages) -> Iterator[tuple[str, tuple[StageRecipe, Path]]]:
    """Stages that make a model to answer; not those whose model judges what others answer."""
    judges = set()
    for task in recipe.stages.values():
        rewards = getattr(task, "rewards", None)
        judges |= set(re.findall(r"\$\{stages\.([^.}]+)\.model\}", rewards.model_dump_json() if rewards else ""))
    for name, (task, place) in stages.items():
        trains = not isinstance(task, RewardModelRecipe | LabelRecipe | EvalRecipe)
        if trains and name not in judges and (is_model(place / FINAL_MODEL) or is_adapter(place / FINAL_ADAPTER)):
            yield name, (task, place)


def _have_shown_it(made: Stages) -> bool:
    """Whether every stage was evaluated at its end, and the first one at its beginning, on the same."""
    asked = [_asked(place) for _, place in made.values()]
    return all(asked) and len({each for of in asked for each in of}) == 1 and len(asked[0]) > 1


def _asked(place: Path) -> list[str]:
    """What each evaluation of a stage asked."""
    found, _ = events.read(storage_of(place))
    return [event["asked"] for event in found if event["kind"] == "evaluation" and "asked" in event]


def _base(task: StageRecipe, place: Path) -> dict[str, object]:
    """What the first stage began with."""
    spec, own = task.model, place / BASE
    if is_model(own) or isinstance(spec, ScratchModel):
        code = {} if isinstance(spec, ScratchModel) else {"trust_remote_code": spec.trust_remote_code}
        return EvaluatedModel(path=str(own), dtype=spec.dtype, **code).model_dump()
    kept = spec.model_dump(include={"path", "revision", "trust_remote_code", "dtype"})
    return EvaluatedModel(**kept).model_dump()


def _result(task: StageRecipe, place: Path) -> dict[str, object]:
    """What a stage has made: a model, or an adapter on what it began with."""
    if not is_model(place / FINAL_MODEL):
        return _base(task, place) | {"adapter": str(place / FINAL_ADAPTER)}
    code = getattr(task.model, "trust_remote_code", False)
    return EvaluatedModel(path=str(place / FINAL_MODEL), dtype=task.model.dtype, trust_remote_code=code).model_dump()
