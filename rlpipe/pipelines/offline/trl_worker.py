"""One rank of a TRL trainer under DeepSpeed, whatever the task. Nothing here knows of Ray."""

import contextlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rlpipe.data.records import DataError
from rlpipe.models.load import load_causal_lm, resolve_dtype
from rlpipe.models.quiet import quiet_libraries
from rlpipe.pipelines.offline import adapted, trl_checkpoints
from rlpipe.pipelines.offline.progress import Progress
from rlpipe.pipelines.offline.table import Table
from rlpipe.pipelines.offline.trl_arguments import arguments
from rlpipe.pipelines.offline.trl_best import best_model
from rlpipe.pipelines.offline.trl_profile import profiler
from rlpipe.pipelines.offline.trl_reporter import FIRST, reporter
from rlpipe.pipelines.profiling import Steps
from rlpipe.recipe.adapter import Adapter, is_the_result
from rlpipe.recipe.model import Model
from rlpipe.recipe.training import OfflineTraining

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

    from rlpipe.training.adapter_export import Departure


@dataclass(frozen=True, slots=True, kw_only=True)
class TrlJob(ABC):
    """What every rank gets. A task adds its data, its trainer, and what it calls the trainer's metrics."""

    metric_names: ClassVar[Mapping[str, str]]
    """Besides those that all trainers share: the trainer's names of metrics, and ours."""

    model: Model
    model_path: str
    tokenizer: "PreTrainedTokenizerBase"
    training: OfflineTraining
    train: Table
    heldout: Table
    others: dict[str, Table] = field(default_factory=dict)
    """Further held-out records, by name: each part is measured apart."""
    seed: int
    timeout_seconds: float
    max_length: int
    output_dir: str
    adapter: Adapter | None
    """What is trained in place of the model's own weights."""
    adapter_dir: str
    """Where that goes, beside what it is merged into, if it can be."""
    directory: str
    """The stage's, for checkpoints."""
    checkpoint: str | None
    """What training goes on from; None begins it."""
    profile: Steps | None = None
    """Of which steps traces are written."""

    @abstractmethod
    def trainer(self, common: dict[str, Any], dtype: "torch.dtype", alive: Callable[[str], None]) -> "Trainer":
        """The trainer with its model and data. The arguments come before the model: under ZeRO-3 they make it split
        while it is read. What takes long here calls `alive` now and then."""

    def causal_lm(self, dtype: "torch.dtype") -> "PreTrainedModel":
        """The language model to train."""
        return adapted.ready(load_causal_lm(self.model, self.model_path, dtype), self.adapter)

    def policy_and_data(self, dtype: "torch.dtype") -> dict[str, Any]:
        """What every trainer of a language model is given beside its settings."""
        return {
            "model": self.causal_lm(dtype),
            "train_dataset": self.train.dataset(),
            "eval_dataset": self.heldout_data(),
            "processing_class": self.tokenizer,
            **adapted.options(self.adapter, self.seed, "CAUSAL_LM", self.model_path, self.training.max_steps),
        }

    def reference(self, dtype: "torch.dtype") -> "PreTrainedModel | None":
        """The model that the policy is compared with; with an adapter of PEFT it is the policy, its adapter off."""
        if adapted.can_be_switched_off(self.adapter):
            return None
        return load_causal_lm(self.model, self.model_path, dtype)

    def heldout_data(self) -> "Dataset | dict[str, Dataset]":
        """What the trainer evaluates on."""
        parts = {FIRST: self.heldout} | self.others
        found = {name: table.dataset() for name, table in parts.items()}
        return found if self.others else found[FIRST]

    @property
    def result(self) -> Path:
        """What tells that the result is there."""
        if is_the_result(self.adapter):
            return Path(self.adapter_dir) / "adapter_config.json"
        return Path(self.output_dir) / "config.json"

    def unit(self) -> str:
        """What a batch counts."""
        return "records"


def train(job: TrlJob, progress: Progress) -> None:
    """Train, evaluate on the held-out records before and after, and save. Collective over the ranks."""
    import torch.distributed as dist

    quiet_libraries()
    from rlpipe.training.checkpoint import tensors_only
    from rlpipe.training.distributed import Rank, join

    if dist.is_initialized():
        rank = Rank(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))
    else:
        rank = Rank()
    join(rank, job.timeout_seconds)
    try:
        with tempfile.TemporaryDirectory(prefix="rlpipe-trl-") as scratch:
            trainer = _trainer(job, scratch, progress)
            with contextlib.suppress(NothingLeft), tensors_only():
                trainer.train(resume_from_checkpoint=job.checkpoint)
            progress.alive("its last step")
            if not job.training.load_best_model_at_end:
                trainer.save_result()
    finally:
        _forget()


class NothingLeft(Exception):
    """The checkpoint that training went on from is that of its last step."""


def no_step_too_many() -> "TrainerCallback":
    """transformers looks whether all steps are done after a step only, also behind a checkpoint of the last one."""
    from transformers import TrainerCallback

    class NoStepTooMany(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step >= state.max_steps:
                raise NothingLeft

    return NoStepTooMany()


def whole_batches(trainer: "type[Trainer]") -> "type[Trainer]":
    """The trainer, dropping a last, smaller batch of the training records only, so that as many ranks as you like see
    the same batches; every held-out record counts."""

    class WholeBatches(trainer):
        def get_train_dataloader(self) -> Any:
            self.args.dataloader_drop_last = True
            try:
                return super().get_train_dataloader()
            finally:
                self.args.dataloader_drop_last = False

    return WholeBatches


def _trainer(job: TrlJob, scratch: str, progress: Progress) -> "Trainer":
    from transformers import PrinterCallback

    dtype = resolve_dtype(job.model.dtype)
    common = arguments(job.training, job.seed, scratch, dtype)
    common |= trl_checkpoints.arguments(job.training, Path(job.directory), resumed=job.checkpoint is not None)
    with adapted.seeded(job.adapter, job.seed):
        trainer = job.trainer(common, dtype, progress.alive)
    _check_size(trainer, job)
    departure = adapted.finish(trainer, job.adapter, dtype, job.checkpoint)
    progress.metrics(0, adapted.sizes(trainer.model))
    save = partial(_save, trainer, job, departure)
    trainer.save_result = partial(save, Path(job.output_dir), Path(job.adapter_dir))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(no_step_too_many())
    trainer.add_callback(reporter(trainer, progress, job.metric_names, job.others))
    if job.training.load_best_model_at_end or job.training.early_stopping_patience:
        keep = trainer.save_result if job.training.load_best_model_at_end else lambda: None
        trainer.add_callback(best_model(job.training, job.metric_names, job.others, keep, progress))
    if job.profile is not None:
        trainer.add_callback(profiler(job.profile, Path(job.directory), trainer.args.process_index))
    if job.training.save_steps:
        trainer.add_callback(trl_checkpoints.committer(trainer, job.training, Path(job.directory), save))
    return trainer


def _check_size(trainer: "Trainer", job: TrlJob) -> None:
    batch = job.training.per_device_train_batch_size * job.training.ranks
    have = len(trainer.train_dataset)
    if have < batch:
        raise DataError(
            f"The training data makes {have} {job.unit()}, fewer than one batch of {batch} over all ranks. Lower "
            "train.per_device_train_batch_size or train.ranks, or bring more data."
        )


def _save(
    trainer: "Trainer",
    job: TrlJob,
    departure: "Callable[[], Departure | None]",
    model_folder: Path,
    adapter_folder: Path,
) -> None:
    """All weights, an adapter of PEFT merged into them, and that by itself. `departure` tells how the base's weights
    have changed."""
    from peft import PeftModel

    from rlpipe.training.export import save_pretrained

    trainer.deepspeed.empty_partition_cache()  # an evaluation leaves ZeRO-3 with parameters in flight
    writer = trainer.is_world_process_zero()
    with tempfile.TemporaryDirectory(prefix="rlpipe-tokenizer-") as folder:
        job.tokenizer.save_pretrained(folder)
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        model.config.use_cache = True  # the trainer turns it off; whoever generates with the result wants it
        if isinstance(model, PeftModel):
            adapted.save(model, job.adapter, departure(), folder, model_folder, adapter_folder, writer)
        else:
            save_pretrained(model, folder, model_folder, writer)


def _forget() -> None:
    """accelerate and transformers keep the training's set-up in globals; a later stage in this process has its own."""
    from accelerate.state import AcceleratorState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    AcceleratorState._reset_state(reset_partial_state=True)
    unset_hf_deepspeed_config()
