"""The ORPO, CPO and SimPO of one rank: TRL's ORPOTrainer and CPOTrainer on pairs that come tokenised.

    reward(y) = beta * log p(y | x)              of ORPO and SimPO the mean over the response's tokens, of CPO the sum

    ORPO    -log p(chosen) per token of prompt and response - beta * log sigmoid(log odds(chosen) - log odds(rejected))
    CPO     -log sigmoid(reward(chosen) - reward(rejected)) - cpo_alpha * log p(chosen) per token
    SimPO   -log sigmoid(reward(chosen) - reward(rejected) - gamma), with cpo_alpha = 0

Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7; Xu et al. 2024, arXiv 2401.08417, eq. 5; Meng et al. 2024, arXiv
2405.14734, eq. 6. The mean is over pairs; the likelihood of ORPO and CPO is a mean over the tokens of a micro-batch of
one rank, as TRL has it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rlpipe.models.virtual_tokens import without_their_logits
from rlpipe.pipelines.offline.dpo_worker import LOGPROBS, REWARDS
from rlpipe.pipelines.offline.preference_judging import HELDOUT, JudgingJob, judging, of_pairs
from rlpipe.pipelines.offline.trl_worker import whole_batches
from rlpipe.recipe.preference_training import CpoTraining, OrpoTraining

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainingArguments

COMMON = REWARDS | LOGPROBS | HELDOUT | {"nll_loss": "nll_loss"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _PairJob(JudgingJob):
    def unit(self) -> str:
        return "pairs"

    def _trainer(self, kind: "type[Trainer]", settings: "TrainingArguments", dtype: "torch.dtype") -> "Trainer":
        return _judging_pairs(whole_batches(kind), self.prompts_B)(args=settings, **self.policy_and_data(dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class OrpoJob(_PairJob):
    """Odds-ratio preference optimisation."""

    metric_names: ClassVar[dict[str, str]] = COMMON | {
        "log_odds_ratio": "log_odds_ratio",
        "log_odds_chosen": "log_odds_chosen",
    }

    training: OrpoTraining

    def trainer(self, common: dict[str, Any], dtype: "torch.dtype", alive: Callable[[str], None]) -> "Trainer":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        settings = ORPOConfig(
            max_length=self.max_length, beta=self.training.beta, remove_unused_columns=False, **common
        )
        return self._trainer(ORPOTrainer, settings, dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpoJob(_PairJob):
    """Contrastive preference optimisation, SimPO."""

    metric_names: ClassVar[dict[str, str]] = COMMON

    training: CpoTraining

    def trainer(self, common: dict[str, Any], dtype: "torch.dtype", alive: Callable[[str], None]) -> "Trainer":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        settings = CPOConfig(
            max_length=self.max_length,
            beta=self.training.beta,
            loss_type=self.training.loss_type,
            cpo_alpha=self.training.cpo_alpha,
            simpo_gamma=self.training.simpo_gamma,
            label_smoothing=self.training.label_smoothing,
            remove_unused_columns=False,
            **common,
        )
        return self._trainer(CPOTrainer, settings, dtype)


def _judging_pairs(trainer: "type[Trainer]", prompts_B: np.ndarray) -> "type[Trainer]":
    class JudgingPairs(judging(trainer, of_pairs(prompts_B))):
        def tokenize_row(self, feature: dict[str, list[int]], model: Any = None) -> dict[str, list[int]]:
            """A record, which is tokenised already, in the columns of this trainer."""
            prompt = feature["prompt_ids"]
            row = {}
            for side in ("chosen", "rejected"):
                response = feature[f"{side}_ids"]
                row[f"{side}_input_ids"] = prompt + response
                row[f"{side}_attention_mask"] = [1] * len(prompt + response)
                row[f"{side}_labels"] = [-100] * len(prompt) + response
            return row

        def concatenated_forward(self, model: Any, batch: Any) -> Any:
            with without_their_logits(self.model):
                found = super().concatenated_forward(model, batch)
            if not self.model.training:
                self.judge(self.beta * found[0].detach().float(), self.beta * found[1].detach().float())
            return found

    return JudgingPairs
