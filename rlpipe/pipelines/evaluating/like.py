"""What an evaluation asks, and who judges, where it is to be like another task."""

from collections.abc import Sequence
from typing import Any

from rlpipe.data.records import DataError
from rlpipe.data.source import load_records
from rlpipe.pipelines.judges import template_of
from rlpipe.recipe.data import ComparisonsData, MixtureData, SftData
from rlpipe.recipe.environment import ConstitutionEnvironment
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.labelling import LabelRecipe, ReadResponses
from rlpipe.recipe.rewards import Reward, RewardMix
from rlpipe.recipe.rollout import Rollout
from rlpipe.recipe.tasks import StageRecipe

SPOKEN_TOKENS = 128
"""Of an answer, where a task has no engines and so nobody has thought of it: half of the context of a model from
scratch."""
_TAKEN = ("environment", "rollout", "evaluation", "deadlines", "tracking")


def asked_like(task: StageRecipe) -> dict[str, Any] | None:
    """The sections of an evaluation; None where the task has no prompts. References are resolved."""
    data = next(iter(task.data.sources.values())) if isinstance(task.data, MixtureData) else task.data
    if isinstance(data, ComparisonsData):
        return None
    taken = {key: value.model_dump() for key in _TAKEN if (value := getattr(task, key, None)) is not None}
    given = {"seed": task.seed, "data": data.model_dump()} | taken
    if isinstance(task, LabelRecipe):
        return given | _as_labelled(task)
    if task.rewards is not None:
        return given | _judged(task.rewards, task.rewards.mix, given["evaluation"]) | {"refusals": []}
    return given | _shown(task) if _has_prompts(data) else None


def _as_labelled(task: LabelRecipe) -> dict[str, Any]:
    """The models answer without requests for critique and revision, which made the data; only judges are asked then,
    as functions of the mix may look at those turns. An answer is right where the labels would have taken it for SFT,
    if it is judged by the same sum."""
    rewards, mix = task.rewards, task.rewards.mix
    revised = isinstance(task.environment, ConstitutionEnvironment)
    asked = [reward for reward in mix if isinstance(reward, JudgeReward)] if revised else mix
    weighs = [reward for reward in mix if reward.weight]
    settings: dict[str, Any] = {"prompts": task.labels.heldout} if task.labels.heldout else {}
    if any(reward in weighs and not _compares(reward) for reward in asked):  # not gold labels alone, which are 0 or 1
        whole = all(reward in asked and not _compares(reward) for reward in weighs)
        settings["correct_at"] = task.labels.accept_at if whole else None
    elif task.labels.gold in [reward.name for reward in asked if not _compares(reward)]:
        settings["correct_by"] = task.labels.gold
    return _judged(rewards, asked, settings) | {
        "guidance": task.guidance.model_dump() if task.guidance else None,
        "environment": {"kind": "single_turn"} if revised else task.environment.model_dump(),
        "rollout": _speaking(task.rollout) if isinstance(task.responses, ReadResponses) else task.rollout.model_dump(),
    }


def _judged(rewards: RewardMix, asked: Sequence[Reward], settings: dict[str, Any]) -> dict[str, Any]:
    """Who compares answers says which model's is better; others say what an answer is worth by itself. Gold labels
    have weight 0 beside a judge that compares, and count where they are alone."""
    compares = [reward for reward in asked if _compares(reward)]
    others = [reward for reward in asked if not _compares(reward)]
    alone = {} if any(reward.weight for reward in others) else {"weight": 1.0}
    mix = [{key: v for key, v in reward.model_dump().items() if key != "share"} | alone for reward in others]
    by = settings.get("correct_by")
    if by not in [None, *(reward.name for reward in others)] or (by is None and alone and len(others) > 1):
        settings = settings | {"correct_by": None, "correct_at": None}  # nobody has said at what sum one is right
    return {
        "rewards": {"mix": mix, "max_failure_rate": rewards.max_failure_rate} if mix else None,
        "judge": compares[-1].model_dump() if compares else None,
        "judge_failure_rate": rewards.max_failure_rate,
        "evaluation": settings,
    }


def _shown(task: StageRecipe) -> dict[str, Any]:
    """Nobody judges."""
    return {"rollout": _speaking(task.rollout), "evaluation": task.evaluation.model_dump() | {"correct_by": None}}


def _speaking(rollout: Rollout) -> dict[str, Any]:
    """The default is made for sums."""
    default = Rollout().max_new_tokens
    room = max(default, (rollout.max_model_len or 2 * SPOKEN_TOKENS) // 2)
    unsaid = rollout.max_new_tokens == default
    return rollout.model_dump() | ({"max_new_tokens": min(SPOKEN_TOKENS, room)} if unsaid else {})


def _compares(reward: Reward) -> bool:
    return isinstance(reward, JudgeReward) and template_of(reward).compares


def _has_prompts(data: SftData) -> bool:
    """Whether its records are more than texts."""
    try:
        load_records(data, only_prompts=True)
    except DataError:
        return False
    return True
