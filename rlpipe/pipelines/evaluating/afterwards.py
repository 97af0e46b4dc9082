"""What a pipeline's end shows without being asked: base and the model of every stage, on the same prompts.

Stages that are evaluated on the same held-out prompts by the same rewards have shown it already. Where they are not
(other data, other rewards, a stage without any), all of them are asked what the last judged stage asks; where no stage
is judged, the held-out prompts of its labelling, by the labels' judges; where nobody judges, those of the last stage's
data, and the answers are shown side by side.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlpipe.data.records import DataError
from rlpipe.data.remote import storage_of
from rlpipe.data.source import load_records
from rlpipe.models.folders import is_adapter, is_model
from rlpipe.observe import events
from rlpipe.pipelines.judges import template_of
from rlpipe.pipelines.stage import FINAL_ADAPTER, FINAL_MODEL
from rlpipe.recipe.data import ComparisonsData, MixtureData, SftData
from rlpipe.recipe.environment import ConstitutionEnvironment
from rlpipe.recipe.evaluating import EvalRecipe, EvaluatedModel
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.labelling import LabelRecipe
from rlpipe.recipe.model import ScratchModel
from rlpipe.recipe.references import resolve
from rlpipe.recipe.rewards import Reward
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
    """What is left to ask when all stages are done; None where nothing is, or no stage has prompts."""
    made = dict(_candidates(recipe, stages))
    if not made or _have_shown_it(made) or any(isinstance(task, EvalRecipe) for task, _ in stages.values()):
        return None
    places = {name: str(place) for name, (_, place) in stages.items()}
    asked = _asked_by(resolve(_last(made, stages), places))
    if asked is None:
        return None
    models = {BASE: _base(*next(iter(made.values())))} | {name: _result(*each) for name, each in made.items()}
    return EvalRecipe.model_validate({"task": "eval", "name": name_of(recipe), "models": models} | asked)


def _last(made: Stages, stages: Stages) -> StageRecipe:
    """The task that says what is asked: the last one that judges a model's answers, or labels, or trains."""
    trained = [task for task, _ in made.values()]
    judged = [task for task in trained if task.rewards is not None]
    labelled = [task for task, _ in stages.values() if isinstance(task, LabelRecipe)]
    return (judged or labelled or trained)[-1]


def _asked_by(task: StageRecipe) -> dict[str, Any] | None:
    """The sections of an evaluation that asks what that task does; None where it has no prompts."""
    data = next(iter(task.data.sources.values())) if isinstance(task.data, MixtureData) else task.data
    taken = {key: value.model_dump() for key in _TAKEN if (value := getattr(task, key, None)) is not None}
    given = {"seed": task.seed, "data": data.model_dump()} | taken
    if isinstance(task, LabelRecipe):
        return given | _judged_as_labels(task)
    if task.rewards is None:
        return given if _has_prompts(data) else None
    for reward in given["rewards"]["mix"]:
        reward.pop("share", None)
    return given | {"refusals": []}


def _judged_as_labels(task: LabelRecipe) -> dict[str, Any]:
    """Who compares responses says which model's answer is better; others say what an answer is worth by itself.
    Requests for critique and revision made the data: the models answer without them, and only judges are asked, as
    functions of the mix may look at those turns."""
    asks_for_revisions = isinstance(task.environment, ConstitutionEnvironment)
    compares = [reward for reward in task.rewards.mix if _compares(reward)]
    others = [reward for reward in task.rewards.mix if not _compares(reward)]
    if asks_for_revisions:
        others = [reward for reward in others if isinstance(reward, JudgeReward)]
    return {
        "guidance": task.guidance.model_dump() if task.guidance else None,
        "environment": {"kind": "single_turn"} if asks_for_revisions else task.environment.model_dump(),
        "rewards": _mixed(others, task.rewards.max_failure_rate),
        "judge": compares[-1].model_dump() if compares else None,
        "evaluation": _settings(task, others),
    }


def _compares(reward: Reward) -> bool:
    return isinstance(reward, JudgeReward) and template_of(reward).compares


def _mixed(rewards: list[Reward], max_failure_rate: float) -> dict[str, Any] | None:
    """Gold labels have weight 0 beside a judge that compares, and count where they are alone."""
    alone = {} if any(reward.weight for reward in rewards) else {"weight": 1.0}
    mix = [reward.model_dump() | alone for reward in rewards]
    return {"mix": mix, "max_failure_rate": max_failure_rate} if mix else None


def _settings(task: LabelRecipe, rewards: list[Reward]) -> dict[str, Any]:
    """As many prompts as were labelled; an answer is right where the labels would have taken it for SFT."""
    prompts = {"prompts": task.labels.heldout} if task.labels.heldout else {}
    gold = not any(reward.weight for reward in rewards)
    return prompts if gold else prompts | {"correct_at": task.labels.accept_at}


def _has_prompts(data: SftData) -> bool:
    """Whether its records are more than texts."""
    try:
        load_records(data, only_prompts=True)
    except DataError:
        return False
    return not isinstance(data, ComparisonsData)


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
