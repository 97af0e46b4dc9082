"""Offline stages: measure the model they start from, train, measure the result."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rlpipe.data.flow import Prompt
from rlpipe.observe.progress import HELDOUT
from rlpipe.pipelines import checkpoints, roles, sizes
from rlpipe.pipelines.answering import answering
from rlpipe.pipelines.evaluation import Evaluator
from rlpipe.pipelines.fitting import that_fit
from rlpipe.pipelines.offline.preference import run_preference
from rlpipe.pipelines.offline.progress import Report
from rlpipe.pipelines.offline.reward_model import run_reward_model
from rlpipe.pipelines.offline.sft import run_sft
from rlpipe.pipelines.offline.trl_reporter import PLANNED
from rlpipe.pipelines.profiling import Steps
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.tasks import OfflineRecipe, PreferenceRecipe, RewardModelRecipe, SftRecipe
from rlpipe.runtime.roles import RoleSpec

Answering = SftRecipe | PreferenceRecipe
"""Recipes whose model can be asked the held-out prompts."""


def run_offline_stage(stage: Stage, recipe: OfflineRecipe) -> None:
    """Train `recipe` in `stage`; the result lies in `stage.result`."""
    match recipe:
        case SftRecipe():
            _run_sft(stage, recipe)
        case RewardModelRecipe():
            _run_reward_model(stage, recipe)
        case _:
            _run_preference(stage, recipe)


def _run_sft(stage: Stage, recipe: SftRecipe) -> None:
    says = f"supervised fine-tuning: {recipe.train.duration} of TRL's SFTTrainer"
    _between_answers(stage, recipe, says, partial(run_sft, recipe, stage.model_path, stage.sources))


def _run_reward_model(stage: Stage, recipe: RewardModelRecipe) -> None:
    says = f"reward modelling: {recipe.train.duration} of TRL's RewardTrainer"
    with stage.events.phase("train", says=says):
        told = _Told(stage, _goes_on(stage))
        run_reward_model(recipe, stage.model_path, stage.records, stage.result, stage.debug, told, stage.profile)


def _run_preference(stage: Stage, recipe: PreferenceRecipe) -> None:
    says = f"preference optimisation: {recipe.train.duration} of TRL's {recipe.task.upper()}Trainer"
    _between_answers(stage, recipe, says, partial(run_preference, recipe, stage.model_path, stage.records))


def _between_answers(
    stage: Stage, recipe: Answering, says: str, run: Callable[[Path, bool, Report, Steps | None], None]
) -> None:
    """Train, with held-out prompts answered before and after where there are rewards."""
    told = _Told(stage, _goes_on(stage))
    if recipe.rewards is not None and not told.step:
        _evaluate(stage, recipe, roles.engines(stage, stage.model_path), step=0)
    with stage.events.phase("train", says=says):
        run(stage.result, stage.debug, told, stage.profile)
    if recipe.rewards is not None:
        _evaluate(stage, recipe, _trained(stage), told.step)


def _trained(stage: Stage) -> RoleSpec:
    """Engines on what the stage has made."""
    if stage.kept_adapter is None:
        return roles.engines(stage, str(stage.result))
    return roles.engines(stage, stage.model_path, stage.kept_adapter)


def _goes_on(stage: Stage) -> int:
    """From which optimizer step; 0 at the beginning."""
    checkpoints.set_damaged_aside(stage.directory)
    step = checkpoints.last_step(stage.directory)
    if step:
        stage.events.note(f"training goes on from the checkpoint of step {step}")
    return step


class _Told:
    """What training reports, as events. What is measured on held-out pairs is an evaluation: the table at the end and
    the report show those."""

    def __init__(self, stage: Stage, step: int) -> None:
        self.step = step
        self._stage, self._events = stage, stage.events

    def __call__(self, step: int, values: dict[str, float]) -> None:
        if "trainable_parameters" in values:
            self._tell_sizes(int(values["trainable_parameters"]), int(values["parameters"]))
            return
        if PLANNED in values:
            self._events.planned(int(values[PLANNED]))
            return
        self.step = step
        if "heldout_pair_accuracy" in values:
            found = {name: v for name, v in values.items() if name.startswith(HELDOUT) and name != "heldout_loss"}
            self._events.evaluation(step, {name.removeprefix(HELDOUT): v for name, v in found.items()}, samples=[])
            values = {"heldout_loss": values["heldout_loss"]}
        self._events.metrics(step, values)

    def _tell_sizes(self, trained: int, everything: int) -> None:
        if not self.step:  # else it was told when training began
            sizes.tell(self._stage, trained, everything)


def _evaluate(stage: Stage, recipe: Answering, engines: RoleSpec, step: int) -> None:
    """Held-out prompts to fresh engines: nothing can be left of other weights."""
    with answering(stage, engines, f"starting {recipe.rollout.engine} to answer held-out prompts") as served:
        heldout = stage.heldout if isinstance(recipe, SftRecipe) else _distinct(stage.heldout)
        heldout = that_fit(heldout, recipe.rollout, stage)
        with stage.events.phase("evaluate", says="answering held-out prompts"):
            found = Evaluator(stage, heldout).run(served.answers)
    stage.events.evaluation(step, found.metrics, found.samples, asked=found.asked)


def _distinct(prompts: list[Prompt]) -> list[Prompt]:
    """Each prompt once, however many responses to it the data holds."""
    return list({prompt.tokens.tobytes(): prompt for prompt in reversed(prompts)}.values())[::-1]
