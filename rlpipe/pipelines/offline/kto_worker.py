"""The KTO of one rank: TRL's KTOTrainer on responses that come tokenised, each good or bad.

    reward(y) = beta * (log p(y | x) - log p_ref(y | x))
    loss      = weight * (1 - sigmoid(+-(reward(y) - beta * kl)))          + for good, - for bad; the mean is over all

kl is estimated from responses to other prompts of the batch (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7 and 8).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rlpipe.pipelines.offline.dpo_worker import LOGPROBS, REWARDS
from rlpipe.pipelines.offline.preference_judging import HELDOUT, JudgingJob, judging, logprob_sums, of_judged
from rlpipe.pipelines.offline.reference import followed, ready_made
from rlpipe.pipelines.offline.trl_worker import whole_batches
from rlpipe.recipe.preference_training import KtoTraining

if TYPE_CHECKING:
    import torch
    from trl import KTOTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class KtoJob(JudgingJob):
    """Kahneman-Tversky optimisation."""

    metric_names: ClassVar[dict[str, str]] = REWARDS | LOGPROBS | HELDOUT | {"kl": "kl", "entropy": "entropy"}

    training: KtoTraining

    def trainer(self, common: dict[str, Any], dtype: "torch.dtype", alive: Callable[[str], None]) -> "KTOTrainer":
        from trl import KTOConfig, KTOTrainer

        kept = not self.training.precompute_ref_log_probs
        settings = KTOConfig(
            max_length=None,  # longer responses are left out already
            beta=self.training.beta,
            loss_type=self.training.loss_type,
            desirable_weight=self.training.desirable_weight,
            undesirable_weight=self.training.undesirable_weight,
            precompute_ref_log_probs=not kept,
            **followed(self.training),
            **common,
        )
        trainer = ready_made(whole_batches(KTOTrainer), ("ref_logps", "ref_KL_logps"), alive)
        return _judging_responses(trainer, self.prompts_B)(
            **self.policy_and_data(dtype), ref_model=self.reference(dtype) if kept else None, args=settings
        )

    def unit(self) -> str:
        return "responses"


def _judging_responses(trainer: "type[KTOTrainer]", prompts_B: np.ndarray) -> "type[KTOTrainer]":
    class JudgingResponses(judging(trainer, of_judged(prompts_B))):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if self.model.training:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            with logprob_sums(self.model, self.ref_model) as sums:
                loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            # With an estimate of the KL, the policy and then the reference are first asked for that.
            policy = sums[1 if self.calculate_KL else 0]
            reference = inputs["ref_logps"] if "ref_logps" in inputs else sums[-1]
            self.judge(self.beta * (policy - reference), inputs["label"])
            return loss

    return JudgingResponses
