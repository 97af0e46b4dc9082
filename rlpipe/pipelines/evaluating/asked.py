"""The recipe that `rlpipe eval MODEL MODEL ...` stands for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpipe.data.records import DataError
from rlpipe.models.folders import is_adapter
from rlpipe.models.load import ModelError
from rlpipe.models.trained_adapters import recorded_base
from rlpipe.pipelines.evaluating.like import asked_like
from rlpipe.pipelines.results import find
from rlpipe.pipelines.run import stages_of
from rlpipe.pipelines.stage import FINAL_ADAPTER, FINAL_MODEL
from rlpipe.recipe.evaluating import EvalRecipe
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.labelling import LabelRecipe
from rlpipe.recipe.load import load
from rlpipe.recipe.references import resolve
from rlpipe.recipe.resolved import FILE
from rlpipe.recipe.tasks import StageRecipe
from rlpipe.rewards.reward import RewardUnusable

_TAKEN = ("data", "rewards", "environment", "rollout", "evaluation", "deadlines")
"""Sections of a run that is to be asked like it."""


class Unclear(ValueError):
    """What was typed stands for no recipe; the message says what to type."""


@dataclass(frozen=True, slots=True)
class Options:
    """Those of the command."""

    data: str | None
    like: str | None
    baseline: str | None
    reference: str | None
    regression: tuple[str, ...]


def split(words: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(name, model) of each model, the name empty where none was given; and changes of the recipe."""
    models, changes = [], []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and ("." in key or key in EvalRecipe.model_fields):
            changes.append(word)
        else:
            models.append((key, value) if equals else ("", word))
    return models, changes


def values(models: Sequence[tuple[str, str]], options: Options) -> dict[str, Any]:
    """Raises `Unclear`."""
    if not models:
        raise Unclear("no model is given; give run directories, folders or hub ids")
    like = _like(options.like, [path for _, path in models])
    made: dict[str, Any] = {"task": "eval", "models": _models(models)} | _asking(like)
    if options.data is not None:
        made |= {"data": _all_of(options.data, made.get("data", {})), "part": "all"}
    made |= {key: value for key in ("baseline", "reference") if (value := getattr(options, key)) is not None}
    return made | ({"regressions": dict(map(_regression, options.regression))} if options.regression else {})


def _models(given: Sequence[tuple[str, str]]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name, path in given:
        known = next((each for each in ([name] if name else _names(path)) if each not in found), None)
        if known is None:
            raise Unclear(f"two models are called {(name or _names(path)[0])}; name this one: NAME={path}")
        found[known] = _model(path)
    return found


def _model(named: str) -> dict[str, str]:
    if not Path(named).expanduser().is_dir():
        if named.count("/") == 1 and not named.startswith(("runs/", ".", "~", "/")):
            return {"path": named}  # of the hub
        raise Unclear(f"there is no folder {named}")
    try:
        folder = find(named)
        base = recorded_base([folder]) if is_adapter(folder) else None
    except ModelError as error:
        raise Unclear(str(error)) from error
    return {"path": base, "adapter": str(folder)} if base else {"path": str(folder)}


def _names(path: str) -> list[str]:
    """What a model may be called, by where it lies: its run or its stage, else with the folder above."""
    parts = [part for part in Path(path).parts if part not in (FINAL_MODEL, FINAL_ADAPTER, "stages", "runs", "/", "..")]
    parts = [re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9._-]", "", part) for part in parts]
    return ["-".join(parts[-count:]) for count in (1, 2, 3) if parts[-count:] and parts[-1]] or ["model"]


def _like(named: str | None, models: Sequence[str]) -> StageRecipe | None:
    """The task of the run that is said, or of the last of the models that is one with rewards."""
    if named is not None:
        task = _task(Path(named).expanduser())
        if task is None:
            raise Unclear(f"--like {named}: there is no run with rewards; give a run directory of one that has them")
        return task
    found = (_task(Path(path).expanduser()) for path in reversed(models))
    return next((task for task in found if task is not None), None)


def _task(folder: Path) -> StageRecipe | None:
    """The last task of a run, or of one stage of it, that judges answers."""
    if folder.parent.name == "stages" and (whole := folder.parent.parent / FILE).is_file():
        stages = stages_of(load(whole), folder.parent.parent)
        tasks = [stages[folder.name][0]] if folder.name in stages else []
    elif (folder / FILE).is_file():
        stages = stages_of(load(folder / FILE), folder)
        tasks = [task for task, _ in stages.values()]
    else:
        return None
    places = {name: str(place) for name, (_, place) in stages.items()}
    judged = [task for task in tasks if getattr(task, "rewards", None) is not None]
    return resolve(judged[-1], places) if judged else None


def _asking(like: StageRecipe | None) -> dict[str, Any]:
    """Of a task that trains or labels, what one that asks can have."""
    if like is None:
        return {}
    judged = any(isinstance(reward, JudgeReward) for reward in like.rewards.mix)
    if isinstance(like, LabelRecipe) or (judged and not isinstance(like, EvalRecipe)):
        return _judging(like)
    taken = like.model_dump(include=set(_TAKEN), exclude_defaults=True)
    if taken.get("data", {}).get("kind") == "mixture":  # what it is asked about
        taken["data"] = next(iter(taken["data"]["sources"].values()))
    for reward in taken.get("rewards", {}).get("mix", []):
        reward.pop("share", None)
    return taken


def _judging(like: StageRecipe) -> dict[str, Any]:
    """A judge that compares responses compares models here."""
    try:
        asked = asked_like(like) or {}
    except (DataError, RewardUnusable) as error:
        raise Unclear(str(error)) from error
    return {key: v for key, v in asked.items() if key not in ("seed", "tracking", "refusals") and v is not None}


def _all_of(path: str, before: dict[str, Any]) -> dict[str, Any]:
    """All records of a file, read as the run's own were."""
    kept = {key: before[key] for key in ("columns", "chat", "system", "format") if key in before}
    return {"kind": "records", "path": path} | kept


def _regression(text: str) -> tuple[str, float]:
    metric, _, loss = text.partition("=")
    try:
        return metric, float(loss)
    except ValueError:
        raise Unclear(f"--regression {text}: expected METRIC=LOSS, such as accuracy=0.02") from None
