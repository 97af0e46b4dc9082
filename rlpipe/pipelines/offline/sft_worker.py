"""The SFT of one rank: TRL's SFTTrainer on examples that come tokenised, labelled and cut."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rlpipe.data.examples import Example
from rlpipe.models.load import load_causal_lm
from rlpipe.pipelines.offline.trl_worker import TrlJob, whole_batches
from rlpipe.recipe.training import SftTraining

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from trl import SFTTrainer


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Examples end to end: example i is tokens_N[offsets_B1[i]:offsets_B1[i + 1]]."""

    tokens_N: np.ndarray
    labels_N: np.ndarray
    offsets_B1: np.ndarray

    @classmethod
    def of(cls, examples: list[Example]) -> "TokenTable":
        lengths = [0, *(len(example.ids) for example in examples)]
        return cls(
            np.fromiter((token for e in examples for token in e.ids), dtype=np.int32),
            np.fromiter((label for e in examples for label in e.labels), dtype=np.int32),
            np.cumsum(lengths),
        )

    def dataset(self) -> "Dataset":
        from datasets import Dataset

        cuts = self.offsets_B1[1:-1]
        return Dataset.from_dict({"input_ids": np.split(self.tokens_N, cuts), "labels": np.split(self.labels_N, cuts)})


@dataclass(frozen=True, slots=True, kw_only=True)
class SftJob(TrlJob):
    """Supervised fine-tuning."""

    metric_names: ClassVar[dict[str, str]] = {
        "mean_token_accuracy": "token_accuracy",
        "entropy": "entropy",
        "eval_mean_token_accuracy": "heldout_token_accuracy",
    }

    training: SftTraining
    train: TokenTable
    heldout: TokenTable

    def trainer(self, common: dict[str, Any], dtype: "torch.dtype") -> "SFTTrainer":
        from trl import SFTConfig, SFTTrainer

        packing = self.training.packing
        settings = SFTConfig(
            packing=packing,
            eval_packing=False,
            max_length=self.max_length,
            # Only packing is left to do.
            dataset_kwargs={"skip_prepare_dataset": not packing},
            **common,
        )
        return whole_batches(SFTTrainer)(
            model=load_causal_lm(self.model, self.model_path, dtype),
            args=settings,
            train_dataset=self.train.dataset(),
            eval_dataset=self.heldout.dataset(),
            processing_class=self.tokenizer,
        )

    def unit(self) -> str:
        return f"packed sequences of {self.max_length} tokens" if self.training.packing else "records"
