"""The DPO of one rank: TRL's DPOTrainer on pairs that come tokenised.

    reward(y) = beta * (log p(y | x) - log p_ref(y | x))
    loss      = -log sigmoid(reward(chosen) - reward(rejected))         loss_type=sigmoid; the mean is over pairs

Rafailov et al. 2023, arXiv 2305.18290, eq. 7; the other losses are those of TRL's documentation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rlpipe.pipelines.offline.preference_judging import HELDOUT, JudgingJob, judging, logprob_sums, of_pairs
from rlpipe.pipelines.offline.reference import followed, ready_made, without_reference
from rlpipe.pipelines.offline.trl_worker import whole_batches
from rlpipe.recipe.preference_training import DpoTraining

if TYPE_CHECKING:
    import torch
    from trl import DPOTrainer

REWARDS = {name: name for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")}
LOGPROBS = {name: name for name in ("logps/chosen", "logps/rejected")}


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoJob(JudgingJob):
    """Direct preference optimisation."""

    metric_names: ClassVar[dict[str, str]] = (
        REWARDS | LOGPROBS | HELDOUT | {"entropy": "entropy", "mean_token_accuracy": "token_accuracy"}
    )

    training: DpoTraining

    def trainer(self, common: dict[str, Any], dtype: "torch.dtype", alive: Callable[[str], None]) -> "DPOTrainer":
        from trl import DPOConfig, DPOTrainer

        kept = not (self.training.precompute_ref_log_probs or self.training.reference_free)
        settings = DPOConfig(
            max_length=None,  # longer pairs are left out already
            beta=self.training.beta,
            label_smoothing=self.training.label_smoothing,
            f_divergence_type=self.training.f_divergence_type,
            f_alpha_divergence_coef=self.training.f_alpha_divergence_coef,
            precompute_ref_log_probs=not kept,
            ld_alpha=self.training.ld_alpha,
            use_weighting=self.training.use_weighting,
            discopop_tau=self.training.discopop_tau,
            **followed(self.training),
            **losses(self.training),
            **common,
        )
        trainer = ready_made(whole_batches(DPOTrainer), ("ref_chosen_logps", "ref_rejected_logps"), alive)
        if self.training.reference_free:
            trainer = without_reference(trainer, ("ref_chosen_logps", "ref_rejected_logps"))
        return _judging_pairs(trainer, self.prompts_B)(
            **self.policy_and_data(dtype), ref_model=self.reference(dtype) if kept else None, args=settings
        )

    def unit(self) -> str:
        return "pairs"


def losses(training: DpoTraining) -> dict[str, list]:
    """TRL's loss_type and loss_weights.

    TRL 1.16 does not smooth the labels of `sigmoid`. With s = -log sigmoid(d), t = -log sigmoid(-d) and smoothing e,
    conservative DPO (Mitchell 2023) is (1 - e) s + e t, and `robust` is ((1 - e) s - e t) / (1 - 2 e); so it is
    2 (1 - e) sigmoid - (1 - 2 e) robust.
    """
    weights, e = dict(training.losses), training.label_smoothing
    if e and "sigmoid" in weights:
        weight = weights["sigmoid"]
        weights |= {"sigmoid": 2 * (1 - e) * weight, "robust": -(1 - 2 * e) * weight}
    return {"loss_type": list(weights), "loss_weights": list(weights.values())}


def _judging_pairs(trainer: "type[DPOTrainer]", prompts_B: np.ndarray) -> "type[DPOTrainer]":
    import torch

    class JudgingPairs(judging(trainer, of_pairs(prompts_B))):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if self.model.training:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            with logprob_sums(self.model, self.ref_model) as sums:
                loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            ready_made = "ref_chosen_logps" in inputs
            columns = [inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]] if ready_made else [sums[-1]]
            reference = torch.cat(columns)
            self.judge(*(self.beta * (sums[0] - reference)).chunk(2))
            return loss

    return JudgingPairs
