"""The tasks a recipe can describe, and pipelines of them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlpipe.recipe.algorithm import Algorithm, Schedule
from rlpipe.recipe.base import FolderName, Strict
from rlpipe.recipe.data import Data
from rlpipe.recipe.model import Model
from rlpipe.recipe.rewards import RewardMix
from rlpipe.recipe.rollout import Evaluation, Rollout
from rlpipe.recipe.run import Deadlines, Publishing, Tracking
from rlpipe.recipe.training import PolicyTraining, SftTraining


class SftRecipe(Strict):
    """Supervised fine-tuning."""

    task: Literal["sft"]
    name: FolderName = "sft"
    """Names the run directory, runs/NAME."""
    seed: int = 0
    model: Model
    data: Data
    train: SftTraining
    rewards: RewardMix | None = None
    """If given, held-out prompts are answered and scored before and after training."""
    rollout: Rollout = Rollout()
    """Engines of that evaluation."""
    evaluation: Evaluation = Evaluation()
    deadlines: Deadlines = Deadlines()
    tracking: Tracking = Tracking()


class RlRecipe(Strict):
    """Online reinforcement learning: sample, score, train, publish."""

    task: Literal["rl"]
    name: FolderName = "rl"
    """Names the run directory, runs/NAME."""
    seed: int = 0
    model: Model
    data: Data
    rewards: RewardMix
    algorithm: Algorithm
    schedule: Schedule
    train: PolicyTraining = PolicyTraining()
    rollout: Rollout = Rollout()
    evaluation: Evaluation = Evaluation()
    publishing: Publishing = Publishing()
    deadlines: Deadlines = Deadlines()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _divisible(self) -> "RlRecipe":
        if self.schedule.prompts_per_step % self.train.minibatches:
            raise ValueError(
                f"schedule.prompts_per_step={self.schedule.prompts_per_step} does not divide into "
                f"train.minibatches={self.train.minibatches}: whole groups stay in one optimizer step"
            )
        return self


Task = Annotated[SftRecipe | RlRecipe, Field(discriminator="task")]


class PipelineRecipe(Strict):
    """Stages run in order; a later stage takes an earlier one's model as `${stages.NAME.model}`."""

    task: Literal["pipeline"]
    name: FolderName = "pipeline"
    """Names the run directory, runs/NAME."""
    stages: Annotated[dict[FolderName, Task], Field(min_length=1)]


Recipe = Annotated[SftRecipe | RlRecipe | PipelineRecipe, Field(discriminator="task")]
