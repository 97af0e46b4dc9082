"""The reward modelling of one rank: TRL's RewardTrainer on pairs that come tokenised.

    loss = -log sigmoid(score(chosen) - score(rejected) - margin) + c * (score(chosen) + score(rejected))^2

Bradley and Terry 1952; margin: Touvron et al. 2023, arXiv 2307.09288, eq. 2; c is train.center_rewards_coefficient
(Eisenstein et al. 2023, arXiv 2312.09244, eq. 2). The mean is over pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rlpipe.models.classifier import load_classifier
from rlpipe.pipelines.offline.adapted import options, ready
from rlpipe.pipelines.offline.preference_judging import HELDOUT, JudgingJob, judging, of_pairs
from rlpipe.pipelines.offline.trl_worker import whole_batches
from rlpipe.recipe.training import RewardModelTraining

if TYPE_CHECKING:
    import torch
    from trl import RewardTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelJob(JudgingJob):
    """Reward modelling."""

    metric_names: ClassVar[dict[str, str]] = HELDOUT | {
        "accuracy": "train_pair_accuracy",
        "margin": "margin",
        "mean_reward": "mean_score",
    }

    training: RewardModelTraining

    def trainer(self, common: dict[str, Any], dtype: "torch.dtype", alive: Callable[[str], None]) -> "RewardTrainer":
        from trl import RewardConfig, RewardTrainer

        # Longer pairs are left out already.
        settings = RewardConfig(
            max_length=None,
            center_rewards_coefficient=self.training.center_rewards_coefficient or None,
            **common,
        )
        pad = self.tokenizer.pad_token_id
        return _judging_pairs(whole_batches(RewardTrainer), self.prompts_B)(
            model=ready(load_classifier(self.model, self.model_path, dtype, pad, head_seed=self.seed), self.adapter),
            args=settings,
            train_dataset=self.train.dataset(),
            eval_dataset=self.heldout_data(),
            processing_class=self.tokenizer,
            **options(self.adapter, self.seed, "SEQ_CLS", self.model_path, self.training.max_steps),
        )

    def unit(self) -> str:
        return "pairs"


def _judging_pairs(trainer: "type[RewardTrainer]", prompts_B: np.ndarray) -> "type[RewardTrainer]":
    class JudgingPairs(judging(trainer, of_pairs(prompts_B))):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            if not self.model.training:
                self.judge(*outputs.logits.detach().squeeze(-1).float().chunk(2))
            return (loss, outputs) if return_outputs else loss

    return JudgingPairs
