"""TRL's trainers with a reference, on data that comes tokenised."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rlpipe.recipe.preference_training import SyncedReference

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import Trainer


def ready_made(trainer: "type[Trainer]", columns: Sequence[str], alive: Callable[[str], None]) -> "type[Trainer]":
    """The trainer, taking its records as they are, and keeping what the reference says of them, where it is worked out
    before training, in `columns`. TRL would keep it in a file beside the data, and data in memory has no such place
    that the ranks share."""
    import torch
    from torch.utils.data import DataLoader
    from trl.models import prepare_deepspeed

    class ReadyMade(trainer):
        def _prepare_dataset(self, dataset: "Dataset", *_: Any) -> "Dataset":
            return dataset

        def _precompute_ref_logps(self, dataset: "Dataset", name: str, batch_size: int) -> "Dataset":
            if self._precompute_engine is None:
                self._precompute_engine = prepare_deepspeed(self.model, self.accelerator)
            batches = self.accelerator.prepare(DataLoader(dataset, batch_size, collate_fn=self.data_collator))
            parts = []
            for number, batch in enumerate(batches, 1):
                parts.append(self._reference_logprobs(batch))
                alive(f"the reference's log-probabilities of {name} batch {number}")
            for column, found in zip(columns, zip(*parts, strict=True), strict=False):
                dataset = dataset.add_column(column, torch.cat(found).numpy())
            return dataset

        def _reference_logprobs(self, batch: Any) -> "list[torch.Tensor]":
            found = self.compute_ref_log_probs(self._precompute_engine, batch)
            return [self.accelerator.gather_for_metrics(part).float().cpu() for part in found if part is not None]

    return ReadyMade


def followed(training: SyncedReference) -> dict[str, Any]:
    """TRL's settings of a reference that follows the policy."""
    return training.model_dump(include={"sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"})


def without_reference(trainer: "type[Trainer]", columns: Sequence[str]) -> "type[Trainer]":
    """The trainer with a reference to which all responses are equally likely."""
    import numpy as np

    class WithoutReference(trainer):
        def _precompute_ref_logps(self, dataset: "Dataset", name: str, batch_size: int) -> "Dataset":
            for column in columns:
                dataset = dataset.add_column(column, np.zeros(len(dataset), dtype=np.float32))
            return dataset

    return WithoutReference
