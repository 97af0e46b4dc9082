"""What a run is going to ask of the cluster, from its recipe alone, and the events of looking at that."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rlpipe.data import remote
from rlpipe.observe.events import EventLog
from rlpipe.plan.adapter_size import trained_parameters
from rlpipe.plan.architecture import Unpredictable
from rlpipe.plan.checkpoint_size import state_bytes
from rlpipe.plan.model_files import facts
from rlpipe.recipe import local_files
from rlpipe.recipe.evaluating import EvalRecipe
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.judging import EngineJudge
from rlpipe.recipe.labelling import LabelRecipe, ReadResponses
from rlpipe.recipe.model import PretrainedModel
from rlpipe.recipe.rewards import ModelReward, RewardMix
from rlpipe.recipe.rollout import Rollout
from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.tasks import RewardModelRecipe, RlRecipe, StageRecipe
from rlpipe.recipe.training import Resources
from rlpipe.runtime.check import Check
from rlpipe.runtime.preflight.wanted import Demand, Room, Wanted

Stages = Mapping[str, StageRecipe]
"""By the prefix of their keys in the recipe: `stages.sft.`, or nothing."""


def check(stages: Stages, directory: Path, events: EventLog) -> None:
    """Look at the cluster that this process is connected to. An event for each check, and one line for people. Raises
    `PreflightFailed`."""
    from rlpipe.runtime.preflight.nodes import alive
    from rlpipe.runtime.preflight.survey import survey

    with events.phase("preflight", says="checking the cluster"):
        found = survey(wanted(stages, directory), events.check)
        events.note(_summary(found, len(alive())))


def _summary(found: list[Check], nodes: int) -> str:
    passed = [check.name for check in found if check.status == "ok"]
    skipped = [check.name for check in found if check.status == "skip"]
    rest = f"; nothing to look at: {', '.join(skipped)}" if skipped else ""
    return f"preflight, {nodes} node{'s' * (nodes > 1)}: {', '.join(passed)} in order{rest}"


def wanted(stages: Stages, directory: Path) -> Wanted:
    """What these stages ask for, one after the other, in the run directory `directory`."""
    named = [(prefix + key, path) for prefix, task in stages.items() for key, path in local_files.named(task)]
    models = {key: path for key, path in named if key.endswith("path") and _loads(key)}
    return Wanted(
        moments=[moment for prefix, task in stages.items() for moment in moments(task, prefix)],
        run_dir=directory,
        copied_to=remote.url_of(directory),
        seconds=max(task.deadlines.preflight for task in stages.values()),
        models=models,
        files={key: path for key, path in named if key not in models},
        waits=any(task.deadlines.placement > Deadlines().placement for task in stages.values()),
        rooms=[room for prefix, task in stages.items() if (room := _room(task, prefix))],
    )


def _loads(key: str) -> bool:
    """Whether processes of roles load from there; data, templates, rewards and environments are the driver's."""
    return ".data." not in f".{key}"


def moments(task: StageRecipe, prefix: str) -> list[list[Demand]]:
    """The roles of a stage that have processes of their own, as they are there at once."""
    if isinstance(task, RlRecipe):
        return [[*_online(task, prefix), *_scorers(task.rewards, prefix)]]
    if isinstance(task, LabelRecipe):
        return list(filter(None, [_responding(task, prefix), list(_scorers(task.rewards, prefix))]))
    if isinstance(task, EvalRecipe):
        judging = list(_scorers(RewardMix(mix=[task.judge]), prefix)) if task.judge else []
        return [_answering(task, prefix), *([judging] if judging else [])]
    train = Demand("training", task.train.ranks, task.train.resources, f"{prefix}train", trains=True)
    if isinstance(task, RewardModelRecipe) or task.rewards is None:
        return [[train]]
    return [[train], _answering(task, prefix)]


def _answering(task: StageRecipe, prefix: str) -> list[Demand]:
    return [_engines(task.rollout, prefix, task.rollout.resources), *_scorers(task.rewards, prefix)]


def _responding(task: LabelRecipe, prefix: str) -> list[Demand]:
    """Engines of the model; none where its responses are read."""
    if isinstance(task.responses, ReadResponses):
        return []
    return [_engines(task.rollout, prefix, task.rollout.resources)]


def _online(task: RlRecipe, prefix: str) -> Iterator[Demand]:
    yield Demand("policy", task.train.ranks, task.train.resources, f"{prefix}train", trains=True)
    engine = task.rollout.resources
    if task.placement == "colocated":  # on the policy's GPUs
        engine = engine.model_copy(update={"gpus": 0.0})
    yield _engines(task.rollout, prefix, engine)
    if task.algorithm.needs_reference and task.adapter is None and not task.reference.share:
        yield Demand("reference", task.reference.ranks, task.reference.resources, f"{prefix}reference", trains=True)
    if task.algorithm.advantage.kind == "gae" and not task.critic.share:
        yield Demand("critic", task.critic.ranks, task.critic.resources, f"{prefix}critic", trains=True)


def _engines(rollout: Rollout, prefix: str, resources: Resources) -> Demand:
    least = rollout.min_engines or rollout.engines  # the others come when there is room
    return Demand("engine", least, resources, f"{prefix}rollout", auto_gpus=rollout.tensor_parallel)


def _scorers(mix: RewardMix | None, prefix: str) -> Iterator[Demand]:
    for i, reward in enumerate(mix.mix if mix else ()):
        if isinstance(reward, ModelReward) and not reward.share:
            split = reward.zero_stage == 3
            key = f"{prefix}rewards.mix.{i}"
            yield Demand(f"reward/{reward.name}", reward.ranks, reward.resources, key, trains=split)
        if isinstance(reward, JudgeReward) and isinstance(reward.by, EngineJudge):
            by, key = reward.by, f"{prefix}rewards.mix.{i}.by"
            yield Demand(f"judge/{reward.name}", by.engines, by.resources, key, auto_gpus=by.tensor_parallel)


def _room(task: StageRecipe, prefix: str) -> Room | None:
    """Checkpoints and the result; None where nothing is trained, or the model's size is not known yet."""
    if isinstance(task, LabelRecipe | EvalRecipe):
        return None
    if isinstance(task.model, PretrainedModel) and not (Path(task.model.path) / "config.json").is_file():
        return None
    try:
        model = facts(task.model).shapes
        trained = trained_parameters(model, task.adapter, isinstance(task, RewardModelRecipe))
    except (Unpredictable, OSError, KeyError, ValueError):
        return None
    result = model.size(isinstance(task, RewardModelRecipe)) * 2  # in bfloat16 at least
    if not task.train.save_steps:
        return Room(result, result, "the result", f"take a smaller {prefix}model")
    one, kept = state_bytes(trained, task.train.optimizer), task.train.save_total_limit + 1
    if isinstance(task, RlRecipe):  # beside it lies the policy, for others to load
        one += trained * 2
    what = f"{kept} checkpoints, as a new one is there before the oldest goes, and the result"
    return Room(kept * one + result, max(one, result), what, f"lower {prefix}train.save_total_limit")
