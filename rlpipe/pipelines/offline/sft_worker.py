"""One rank of SFT: TRL's trainer under DeepSpeed. Nothing here knows of Ray."""

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlpipe.data.examples import Example
from rlpipe.data.records import DataError
from rlpipe.models.load import load_causal_lm, resolve_dtype
from rlpipe.models.quiet import quiet_libraries
from rlpipe.pipelines.offline.progress import Progress
from rlpipe.recipe.model import Model
from rlpipe.recipe.training import Optimizer, SftTraining

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl import SFTTrainer

_BUCKET = 50_000_000
"""Elements ZeRO communicates at once."""

_NAMES = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "mean_token_accuracy": "token_accuracy",
    "entropy": "entropy",
    "num_tokens": "tokens",
    "epoch": "epoch",
    "eval_loss": "heldout_loss",
    "eval_mean_token_accuracy": "heldout_token_accuracy",
}
"""The trainer's names of metrics, and ours."""


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


@dataclass(frozen=True, slots=True)
class SftJob:
    """What every rank gets."""

    model: Model
    model_path: str
    tokenizer: "PreTrainedTokenizerBase"
    training: SftTraining
    seed: int
    timeout_seconds: float
    train: TokenTable
    heldout: TokenTable
    max_length: int
    output_dir: str


def train(job: SftJob, progress: Progress) -> None:
    """Train, evaluate on the held-out records before and after, and save. Collective over the ranks."""
    import torch.distributed as dist

    quiet_libraries()
    from rlpipe.training.distributed import Rank, join

    if dist.is_initialized():
        rank = Rank(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))
    else:
        rank = Rank()
    join(rank, job.timeout_seconds)
    try:
        with tempfile.TemporaryDirectory(prefix="rlpipe-sft-") as scratch:
            trainer = _trainer(job, scratch, progress)
            trainer.train()
            progress.alive("its last step")
            _save(trainer, job)  # before the evaluation: its forwards leave ZeRO-3 with prefetched parameters in flight
            trainer.evaluate()
    finally:
        _forget()


def _forget() -> None:
    """accelerate and transformers keep the training's set-up in globals; a later stage in this process has its own."""
    from accelerate.state import AcceleratorState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    AcceleratorState._reset_state(reset_partial_state=True)
    unset_hf_deepspeed_config()


def _trainer(job: SftJob, scratch: str, progress: Progress) -> "SFTTrainer":
    quiet_libraries()
    from transformers import PrinterCallback

    dtype = resolve_dtype(job.model.dtype)
    # The arguments come first: under ZeRO-3 they make `load_causal_lm` split the weights while it reads them.
    arguments = _arguments(job, scratch, dtype)
    model = load_causal_lm(job.model, job.model_path, dtype)
    trainer = _trainer_class()(
        model=model,
        args=arguments,
        train_dataset=job.train.dataset(),
        eval_dataset=job.heldout.dataset(),
        processing_class=job.tokenizer,
    )
    _check_size(trainer, job)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_reporter(trainer, progress))
    return trainer


def _trainer_class() -> "type[SFTTrainer]":
    from trl import SFTTrainer

    class Trainer(SFTTrainer):
        """Drops a last, smaller batch of the training records only, so that as many ranks as you like see the same
        batches; every held-out record counts."""

        def get_train_dataloader(self) -> Any:
            self.args.dataloader_drop_last = True
            try:
                return super().get_train_dataloader()
            finally:
                self.args.dataloader_drop_last = False

    return Trainer


def _arguments(job: SftJob, scratch: str, dtype: "torch.dtype") -> Any:
    import datasets
    import torch
    from trl import SFTConfig

    datasets.disable_progress_bars()
    ours = job.training
    on_gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=scratch,
        max_steps=ours.max_steps,
        per_device_train_batch_size=ours.per_device_train_batch_size,
        per_device_eval_batch_size=ours.per_device_train_batch_size,
        gradient_accumulation_steps=ours.gradient_accumulation_steps,
        gradient_checkpointing=ours.gradient_checkpointing,
        packing=ours.packing,
        eval_packing=False,
        max_length=job.max_length,
        # Examples come tokenised, labelled and cut; only packing is left to do.
        dataset_kwargs={"skip_prepare_dataset": not ours.packing},
        deepspeed=_deepspeed(ours, dtype, on_gpu),
        bf16=dtype == torch.bfloat16,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        seed=job.seed,
        eval_on_start=True,
        logging_steps=ours.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **_optimizer(ours.optimizer),
    )


def _optimizer(settings: Optimizer) -> dict[str, Any]:
    schedule = settings.lr_scheduler_type
    return settings.model_dump() | {
        "optim": "adamw_torch_fused",
        # transformers' `constant` ignores the warm-up.
        "lr_scheduler_type": "constant_with_warmup" if schedule == "constant" else schedule,
    }


def _deepspeed(training: SftTraining, dtype: "torch.dtype", on_gpu: bool) -> dict[str, Any]:
    """The policy's DeepSpeed settings, with what transformers fills in from its own arguments left to it."""
    from rlpipe.training.engine import deepspeed_config

    config = deepspeed_config(dtype, training.zero_stage, training.optimizer.max_grad_norm, _BUCKET, on_gpu)
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    config |= dict.fromkeys(auto, "auto")
    if training.zero_stage == 3:
        by_model_size = ("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
        config["zero_optimization"] |= dict.fromkeys(by_model_size, "auto")
    return config


def _check_size(trainer: "SFTTrainer", job: SftJob) -> None:
    batch = job.training.per_device_train_batch_size * job.training.ranks
    have = len(trainer.train_dataset)
    if have < batch:
        what = f"{have} packed sequences of {job.max_length} tokens" if job.training.packing else f"{have} records"
        raise DataError(
            f"The training data makes {what}, fewer than one batch of {batch} over all ranks. Lower "
            "train.per_device_train_batch_size or train.ranks, or bring more data."
        )


def _reporter(trainer: "SFTTrainer", progress: Progress) -> Any:
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        """Passes the trainer's figures on, and stops at the first loss that is not a number."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if trainer.deepspeed.zero_optimization_stage() == 0:
                _keep_gradient_norm(trainer.deepspeed)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.alive(f"step {state.global_step}")

        def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.alive(f"evaluation at step {state.global_step}")

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            values = {ours: float(logs[theirs]) for theirs, ours in _NAMES.items() if theirs in logs}
            if "heldout_loss" in values:
                values.pop("epoch", None)  # of training, which an evaluation stands beside
            if not math.isfinite(values.get("loss", 0.0)):
                raise FloatingPointError(
                    f"The training loss is {values['loss']} at step {state.global_step}. Lower "
                    "train.optimizer.learning_rate, or look for records that break the model."
                )
            if values.keys() & {"loss", "heldout_loss"}:
                progress.metrics(state.global_step, values)

    return Reporter()


def _keep_gradient_norm(engine: Any) -> None:
    """In stage 0 DeepSpeed clips in float32 without keeping the norm, which its engine then reports as None."""
    import torch

    def clip() -> None:
        parameters = list(engine.module.parameters())
        engine._global_grad_norm = torch.nn.utils.clip_grad_norm_(parameters, engine.gradient_clipping())

    engine.clip_fp32_gradients = clip


def _save(trainer: "SFTTrainer", job: SftJob) -> None:
    from rlpipe.training.export import save_pretrained

    with tempfile.TemporaryDirectory(prefix="rlpipe-tokenizer-") as folder:
        job.tokenizer.save_pretrained(folder)
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        model.config.use_cache = True  # the trainer turns it off; whoever generates with the result wants it
        save_pretrained(model, folder, Path(job.output_dir), writer=trainer.is_world_process_zero())
