"""Which lines of a recipe to change where it does not fit: each change is planned itself, and told if it helps."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rlpipe.plan.placement import Spot, on_gpu, on_host
from rlpipe.plan.roles import model_rewards
from rlpipe.plan.stage import Asked, StagePlan
from rlpipe.plan.usage import total
from rlpipe.plan.whole import Plan, plan
from rlpipe.recipe.evaluating import EvalRecipe
from rlpipe.recipe.labelling import LabelRecipe
from rlpipe.recipe.schema import adapter
from rlpipe.recipe.tasks import Recipe, RlRecipe, StageRecipe

Change = dict[str, Any]
"""Values by dotted key of a task."""
MOST = 4
"""Pieces of advice for each stage."""


@dataclass(frozen=True, slots=True)
class Advice:
    """A change that makes a stage fit."""

    change: str
    """As on the command line: `train.zero_stage=3 train.ranks=4`."""
    fullest: int
    """Bytes of the fullest GPU, or node without GPUs, that are taken then."""


def advice(whole: Plan, stage: StagePlan, asked: Asked) -> list[Advice]:
    """The smallest changes that make a stage fit; single ones, else several together. Empty where none is found."""
    prefix = f"stages.{stage.name}." if stage.name else ""
    singles = [found for change in _singles(stage.recipe) if (found := _tried(whole, stage, change, prefix, asked))]
    if singles:
        return singles[:MOST]
    together: Change = {}
    for change in _together(stage.recipe):
        if _changed(whole.recipe, together | change, prefix) is None:
            continue
        together |= change
        if found := _tried(whole, stage, together, prefix, asked):
            return [found]
    return []


def _changed(recipe: Recipe, change: Change, prefix: str) -> Recipe | None:
    """The recipe with a change; None where that is none."""
    data = recipe.model_dump()
    for key, value in change.items():
        _put(data, f"{prefix}{key}".split("."), value)
    try:
        return adapter().validate_python(data)
    except ValidationError:
        return None


def _tried(whole: Plan, stage: StagePlan, change: Change, prefix: str, asked: Asked) -> Advice | None:
    """What becomes of the stage with a change; None where that is no recipe, or does not fit either."""
    recipe = _changed(whole.recipe, change, prefix)
    if recipe is None:
        return None
    changed = plan(recipe, whole.cluster, asked)
    found = next(one for one in changed.stages if one.name == stage.name)
    words = " ".join(f"{prefix}{key}={_written(value)}" for key, value in change.items())
    return Advice(words, fullest(found)) if found.fits else None


def _put(data: Any, path: list[str], value: object) -> None:
    for key in path[:-1]:
        data = data[int(key)] if isinstance(data, list) else data[key]
    data[path[-1]] = value


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _singles(recipe: StageRecipe) -> Iterator[Change]:
    """Changes of one key, those that cost least first."""
    yield from _rollout(recipe)
    if isinstance(recipe, EvalRecipe | LabelRecipe):
        yield {"rollout.tensor_parallel": recipe.rollout.tensor_parallel * 2}
        yield from ({"rollout.engines": engines} for engines in _fewer(recipe.rollout.engines))
        return
    yield {"train.gradient_checkpointing": True}
    yield from _smaller(recipe)
    yield from ({"train.zero_stage": stage} for stage in range(recipe.train.zero_stage + 1, 4))
    if isinstance(recipe, RlRecipe):
        yield {"train.zero_stage": max(recipe.train.zero_stage, 1), "train.offload_optimizer": True}
        for role in ("reference", "critic"):
            yield {f"{role}.share": "policy"}
            yield {f"{role}.zero_stage": 3}
        yield {"reference.offload_param": True}
        yield {"critic.gradient_checkpointing": True}
        yield from ({"critic.zero_stage": stage} for stage in (1, 2))
        yield _colocated(recipe)
        yield {"rollout.tensor_parallel": recipe.rollout.tensor_parallel * 2}
    yield from ({"train.ranks": ranks} for ranks in _fewer(recipe.train.ranks))
    if isinstance(recipe, RlRecipe):
        yield from ({"rollout.engines": engines} for engines in _fewer(recipe.rollout.engines))


def _colocated(recipe: RlRecipe) -> Change:
    """With what it asks for: as many GPUs of engines as ranks, and neither samples ahead of the other."""
    engines, rest = divmod(recipe.train.ranks, recipe.rollout.tensor_parallel)
    change: Change = {"placement": "colocated"}
    if engines and not rest and engines != recipe.rollout.engines:
        change["rollout.engines"] = engines
    if recipe.run.max_staleness:
        change |= {"run.max_staleness": 0, "run.min_effective_sample_size": 0.0}
    return change


def _fewer(count: int) -> Iterator[int]:
    while count > 1:
        count //= 2
        yield count


def _rollout(recipe: StageRecipe) -> Iterator[Change]:
    """Of engines: another share of the GPU, shorter sequences."""
    if not isinstance(recipe, RlRecipe | EvalRecipe | LabelRecipe):
        return
    rollout = recipe.rollout
    written = rollout.max_new_tokens if isinstance(recipe, EvalRecipe) else recipe.longest_response
    for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2):
        if share != rollout.gpu_memory_utilization:
            yield {"rollout.gpu_memory_utilization": share}
    for length in (32768, 16384, 8192, 4096, 2048):
        if length > written and (rollout.max_model_len is None or length < rollout.max_model_len):
            yield {"rollout.max_model_len": length}


def _smaller(recipe: StageRecipe) -> Iterator[Change]:
    """Smaller micro-batches of the same batch."""
    if isinstance(recipe, RlRecipe):
        budget = recipe.train.tokens_per_micro_batch
        yield from ({"train.tokens_per_micro_batch": size} for size in _fewer(budget) if size >= 512)
        return
    train = recipe.train
    for size in _fewer(train.per_device_train_batch_size):
        times = train.per_device_train_batch_size * train.gradient_accumulation_steps // size
        yield {"train.per_device_train_batch_size": size, "train.gradient_accumulation_steps": times}


def _together(recipe: StageRecipe) -> Iterator[Change]:
    """Changes that are tried on top of each other, as far as they go together: first fewer GPUs, then less on each."""
    if isinstance(recipe, EvalRecipe | LabelRecipe):
        yield {"rollout.gpu_memory_utilization": 0.9}
        yield from (change for change in _rollout(recipe) if "rollout.max_model_len" in change)
        return
    if isinstance(recipe, RlRecipe):
        yield from ({f"{key}.share": "policy"} for key, _ in model_rewards(recipe.rewards))
        yield {"reference.share": "policy"}
        yield {"critic.share": "policy"}
        yield _colocated(recipe)
        yield {"reference.offload_param": True}
        yield from ({f"{key}.offload_param": True} for key, _ in model_rewards(recipe.rewards))
    yield {"train.gradient_checkpointing": True}
    yield from _smaller(recipe)
    yield from ({"train.zero_stage": stage} for stage in range(recipe.train.zero_stage + 1, 4))
    if isinstance(recipe, RlRecipe):
        yield {"train.offload_optimizer": True}
        yield {"train.offload_param": True}
        yield from _rollout(recipe)


def fullest(stage: StagePlan) -> int:
    """Bytes that are taken of the GPU, or of the node without GPUs, that has most on it."""
    return max(count for scene in stage.scenes for spot in scene.placed.spots for count in _taken(spot))


def _taken(spot: Spot) -> Iterator[int]:
    if not spot.gpus:
        yield total(on_host(spot))
    yield from (total(on_gpu(seated)) for seated in spot.gpus)
