"""Preference optimisation: tasks that learn from better and worse responses without sampling any."""

from typing import ClassVar, Literal

from pydantic import model_validator

from rlpipe.recipe.adapter import Adapter, check_evaluated, check_followed, check_offline, check_reference
from rlpipe.recipe.base import FolderName, Strict
from rlpipe.recipe.data import PreferenceData
from rlpipe.recipe.environment import Environment, SingleTurn, check_rewards
from rlpipe.recipe.model import Model, quantization_of
from rlpipe.recipe.preference_training import CpoTraining, DpoTraining, KtoTraining, OrpoTraining, PreferenceTraining
from rlpipe.recipe.qlora import check_quantized
from rlpipe.recipe.rewards import RewardMix, check_correct_by, check_nothing_shared
from rlpipe.recipe.rollout import Evaluation, Rollout
from rlpipe.recipe.run import Deadlines, Tracking


class PreferenceRecipe(Strict):
    """What the preference tasks have in common."""

    environment: ClassVar[Environment] = SingleTurn(kind="single_turn")
    """Evaluation is a single turn."""

    task: str
    """A preference task."""
    name: FolderName
    """Names the run directory, runs/NAME."""
    seed: int = 0
    """Seed of the model from scratch, the order of the data and every sample."""
    model: Model
    """The policy to start from, which is its own reference: an SFT model."""
    adapter: Adapter | None = None
    """What is trained in place of the model's own weights; absent for full fine-tuning."""
    data: PreferenceData
    """Preferences to learn from; with `kind: arithmetic`, pairs of the right sum and a likely wrong one."""
    train: PreferenceTraining
    """Loss, batches, optimizer and processes of the training."""
    rewards: RewardMix | None = None
    """If given, held-out prompts are answered and scored before and after training: preferences can be met while
    answers get worse."""
    rollout: Rollout = Rollout()
    """Engines of that evaluation."""
    evaluation: Evaluation = Evaluation()
    """What is asked of the held-out data, before and after training."""
    deadlines: Deadlines = Deadlines()
    """How long remote waits may take."""
    tracking: Tracking = Tracking()
    """Where metrics go besides the run directory."""

    @model_validator(mode="after")
    def _adapter_fits(self) -> "PreferenceRecipe":
        check_offline(self.adapter, self.train)
        check_evaluated(self.adapter, self.rewards, self.rollout)
        check_quantized(quantization_of(self.model), self.adapter)
        return self

    @model_validator(mode="after")
    def _rewards_fit(self) -> "PreferenceRecipe":
        if self.rewards is not None:
            check_rewards(self.environment, self.rewards)
            check_nothing_shared(self.rewards)
            check_correct_by(self.evaluation.correct_by, self.rewards)
        return self


class DpoRecipe(PreferenceRecipe):
    """Direct preference optimisation, from pairs."""

    task: Literal["dpo"]
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) and its relatives."""
    name: FolderName = "dpo"
    """Names the run directory, runs/NAME."""
    train: DpoTraining
    """Loss, batches, optimizer and processes of the training."""

    @model_validator(mode="after")
    def _has_a_reference(self) -> "DpoRecipe":
        if not self.train.reference_free:
            check_reference(self.adapter)
        check_followed(self.adapter, self.train.sync_ref_model)
        return self


class KtoRecipe(PreferenceRecipe):
    """Kahneman-Tversky optimisation, from single responses that are good or bad."""

    task: Literal["kto"]
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306)."""
    name: FolderName = "kto"
    """Names the run directory, runs/NAME."""
    data: PreferenceData
    """Responses with a label, good or bad, to learn from; pairs are taken apart into one of each."""
    train: KtoTraining
    """Loss, batches, optimizer and processes of the training."""

    @model_validator(mode="after")
    def _has_a_reference(self) -> "KtoRecipe":
        check_reference(self.adapter)
        check_followed(self.adapter, self.train.sync_ref_model)
        return self


class OrpoRecipe(PreferenceRecipe):
    """Odds-ratio preference optimisation, from pairs and without a reference."""

    task: Literal["orpo"]
    """Odds-ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691)."""
    name: FolderName = "orpo"
    """Names the run directory, runs/NAME."""
    model: Model
    """The policy to start from; there is no reference."""
    train: OrpoTraining
    """Loss, batches, optimizer and processes of the training."""


class CpoRecipe(PreferenceRecipe):
    """Contrastive preference optimisation and SimPO, from pairs and without a reference."""

    task: Literal["cpo"]
    """Contrastive preference optimisation (Xu et al. 2024, arXiv 2401.08417); SimPO (Meng et al. 2024, arXiv
    2405.14734) with train.loss_type=simpo."""
    name: FolderName = "cpo"
    """Names the run directory, runs/NAME."""
    model: Model
    """The policy to start from; there is no reference."""
    train: CpoTraining
    """Loss, batches, optimizer and processes of the training."""
