"""The reward modelling of one rank: TRL's RewardTrainer on pairs that come tokenised.

    loss = -log sigmoid(score(chosen) - score(rejected) - margin) + c * (score(chosen) + score(rejected))^2

Bradley and Terry 1952; margin: Touvron et al. 2023, arXiv 2307.09288, eq. 2; c is train.center_rewards_coefficient
(Eisenstein et al. 2023, arXiv 2312.09244, eq. 2). The mean is over pairs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rlpipe.data.preferences import Pair, prompt_numbers
from rlpipe.models.classifier import load_classifier
from rlpipe.pipelines.offline.trl_worker import TrlJob, whole_batches
from rlpipe.recipe.training import RewardModelTraining

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from trl import RewardTrainer


@dataclass(frozen=True, slots=True)
class PairTable:
    """Sequences end to end, chosen and rejected in turn: pair i has sequences 2 i and 2 i + 1, where sequence s is
    tokens_N[offsets_S1[s]:offsets_S1[s + 1]]."""

    tokens_N: np.ndarray
    offsets_S1: np.ndarray
    margins_B: np.ndarray | None
    """None where no pair has one."""
    prompts_B: np.ndarray
    """Which prompt each pair is about."""

    @classmethod
    def of(cls, pairs: list[Pair]) -> "PairTable":
        sequences = [ids for pair in pairs for ids in (pair.chosen, pair.rejected)]
        margins = [pair.margin for pair in pairs]
        return cls(
            np.fromiter((token for ids in sequences for token in ids), dtype=np.int32),
            np.cumsum([0, *map(len, sequences)]),
            np.array(margins, dtype=np.float32) if any(margins) else None,
            np.array(prompt_numbers(pairs)),
        )

    def dataset(self) -> "Dataset":
        from datasets import Dataset

        sequences = np.split(self.tokens_N, self.offsets_S1[1:-1])
        columns = {"chosen_ids": sequences[::2], "rejected_ids": sequences[1::2]}
        return Dataset.from_dict(columns | ({} if self.margins_B is None else {"margin": self.margins_B}))


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelJob(TrlJob):
    """Reward modelling."""

    metric_names: ClassVar[dict[str, str]] = {
        "accuracy": "train_pair_accuracy",
        "margin": "margin",
        "mean_reward": "mean_score",
        "eval_accuracy": "heldout_pair_accuracy",
        "eval_accuracy_stderr": "heldout_pair_accuracy_stderr",
        "eval_margin": "heldout_margin",
    }

    training: RewardModelTraining
    train: PairTable
    heldout: PairTable

    def trainer(self, common: dict[str, Any], dtype: "torch.dtype") -> "RewardTrainer":
        from trl import RewardConfig, RewardTrainer

        # Longer pairs are left out already.
        settings = RewardConfig(
            max_length=None,
            center_rewards_coefficient=self.training.center_rewards_coefficient or None,
            **common,
        )
        pad = self.tokenizer.pad_token_id
        return _counting_pairs(whole_batches(RewardTrainer), self.heldout.prompts_B)(
            model=load_classifier(self.model, self.model_path, dtype, pad, head_seed=self.seed),
            args=settings,
            train_dataset=self.train.dataset(),
            eval_dataset=self.heldout.dataset(),
            processing_class=self.tokenizer,
        )

    def unit(self) -> str:
        return "pairs"


def clustered_stderr(values_B: np.ndarray, clusters_B: np.ndarray) -> float:
    """Standard error of the mean of values of which those of one cluster are not independent:

        sqrt( sum over clusters c of (sum over i in c of (x_i - mean))^2 ) / n

    (Liang and Zeger 1986; Miller 2024, arXiv 2411.00640, eq. 4). With clusters of one it is the usual one with n in
    place of n - 1. Shapes: both [B].
    """
    sums_C = np.bincount(clusters_B, weights=values_B - values_B.mean())
    return float(np.sqrt(np.square(sums_C).sum()) / len(values_B))


def _counting_pairs(trainer: "type[RewardTrainer]", prompts_B: np.ndarray) -> "type[RewardTrainer]":
    """The trainer with accuracy and margin of the held-out data as means over its pairs; TRL averages the means of
    batches, of which the last is smaller. Equal scores count one half, as in the baseline."""
    import torch

    class CountingPairs(trainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            self._differences: list[torch.Tensor] = []
            return super().evaluate(*args, **kwargs)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            if not self.model.training:
                chosen_B, rejected_B = outputs.logits.detach().squeeze(-1).float().chunk(2)
                self._differences.append(self.accelerator.gather_for_metrics(chosen_B - rejected_B).cpu())
            return (loss, outputs) if return_outputs else loss

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if not self.model.training:
                differences_B = torch.cat(self._differences)  # in the order of the held-out data
                won_B = ((differences_B > 0) + 0.5 * (differences_B == 0)).numpy()
                self._metrics["eval"] |= {
                    "accuracy": [won_B.mean().item()],
                    "accuracy_stderr": [clustered_stderr(won_B, prompts_B)],
                    "margin": [differences_B.mean().item()],
                }
            super().log(logs, start_time)

    return CountingPairs
