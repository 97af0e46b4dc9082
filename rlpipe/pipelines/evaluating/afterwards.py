"""What a pipeline's end shows without being asked: base and the model of every stage, on the same prompts.

Stages that are evaluated on the same held-out prompts by the same rewards have shown it already. Where they are not
(other data, other rewards, a stage without any), all of them are asked what the last judged stage asks; where no stage
is judged, the held-out prompts of its labelling, by the labels' judges; where nobody judges, those of the last stage's
data, and the answers are shown side by side.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from rlpipe.data.remote import storage_of
from rlpipe.models.folders import adapter_settings, is_adapter, is_model
from rlpipe.models.load import materialise
from rlpipe.observe import events
from rlpipe.pipelines.evaluating.like import asked_like
from rlpipe.pipelines.evaluating.served import travels
from rlpipe.pipelines.stage import FINAL_ADAPTER, FINAL_MODEL
from rlpipe.recipe.data import ComparisonsData
from rlpipe.recipe.evaluating import EvalRecipe, EvaluatedModel
from rlpipe.recipe.labelling import LabelRecipe
from rlpipe.recipe.references import resolve
from rlpipe.recipe.tasks import PipelineRecipe, RewardModelRecipe, StageRecipe

BASE = "base"
Stages = Mapping[str, tuple[StageRecipe, Path]]


def name_of(recipe: PipelineRecipe) -> str:
    """Of the stage that compares; no other is called so."""
    name = "comparison"
    while name in recipe.stages:
        name += "-2"
    return name


def comparison_of(recipe: PipelineRecipe, stages: Stages) -> EvalRecipe | None:
    """What is left to ask when all stages are done; None where nothing is, or no stage has prompts."""
    places = {name: str(place) for name, (_, place) in stages.items()}
    made = {name: (resolve(task, places), place) for name, (task, place) in _candidates(recipe, stages)}
    if not made or _have_shown_it(made) or any(isinstance(task, EvalRecipe) for task, _ in stages.values()):
        return None
    asked = asked_like(resolve(_last(made, stages), places))
    if asked is None:
        return None
    models = {BASE: _base(*next(iter(made.values())))} | {name: _result(*each) for name, each in made.items()}
    if any(model["adapter"] and not travels(adapter_settings(Path(model["adapter"]))) for model in models.values()):
        asked["rollout"] |= {"engine": "transformers", "tensor_parallel": 1}  # vLLM does not serve such a kind
    return EvalRecipe.model_validate({"task": "eval", "name": name_of(recipe), "models": models} | asked)


def _last(made: Stages, stages: Stages) -> StageRecipe:
    """The task that says what is asked: the last one that judges a model's answers, or labels, or trains."""
    trained = [task for task, _ in made.values()]
    judged = [task for task in trained if task.rewards is not None and not isinstance(task.data, ComparisonsData)]
    labelled = [task for task, _ in stages.values() if isinstance(task, LabelRecipe)]
    return (judged or labelled or trained)[-1]


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
    """What the first stage began with; what a stage makes of it is made again where it is not there any more."""
    own = place / BASE
    path = str(own) if is_model(own) else materialise(task.model, task.seed, own)
    code = task.model.model_dump(include={"revision", "trust_remote_code"}) if path != str(own) else _code(task)
    return EvaluatedModel(path=path, dtype=task.model.dtype, **code).model_dump()


def _result(task: StageRecipe, place: Path) -> dict[str, object]:
    """What a stage has made: a model, or an adapter on what it began with."""
    if not is_model(place / FINAL_MODEL):
        return _base(task, place) | {"adapter": str(place / FINAL_ADAPTER)}
    return EvaluatedModel(path=str(place / FINAL_MODEL), dtype=task.model.dtype, **_code(task)).model_dump()


def _code(task: StageRecipe) -> dict[str, object]:
    """Of a model in a folder of the run, which has no revision."""
    return {"trust_remote_code": getattr(task.model, "trust_remote_code", False)}
