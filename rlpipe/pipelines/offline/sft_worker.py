"""The SFT of one rank: TRL's SFTTrainer on examples that come tokenised, labelled and cut."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rlpipe.pipelines.offline.trl_worker import TrlJob, whole_batches
from rlpipe.recipe.training import SftTraining

if TYPE_CHECKING:
    import torch
    from trl import SFTTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class SftJob(TrlJob):
    """Supervised fine-tuning."""

    metric_names: ClassVar[dict[str, str]] = {
        "mean_token_accuracy": "token_accuracy",
        "entropy": "entropy",
        "eval_mean_token_accuracy": "heldout_token_accuracy",
    }

    training: SftTraining

    def trainer(self, common: dict[str, Any], dtype: "torch.dtype", alive: Callable[[str], None]) -> "SFTTrainer":
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
        return whole_batches(SFTTrainer)(args=settings, **self.policy_and_data(dtype))

    def unit(self) -> str:
        return f"packed sequences of {self.max_length} tokens" if self.training.packing else "records"
