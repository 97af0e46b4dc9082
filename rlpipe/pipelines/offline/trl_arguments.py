"""A recipe's training section as arguments of TRL's trainers, DeepSpeed's configuration among them."""

from typing import TYPE_CHECKING, Any

from rlpipe.recipe.training import OfflineOptimizer, OfflineTraining

if TYPE_CHECKING:
    import torch

_BUCKET = 50_000_000
"""Elements ZeRO communicates at once."""


def arguments(training: OfflineTraining, seed: int, scratch: str, dtype: "torch.dtype") -> dict[str, Any]:
    """What every TRL configuration class takes. Under ZeRO-3 such a class makes models split while they are read."""
    import datasets
    import torch

    datasets.disable_progress_bars()
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": scratch,
        "max_steps": training.max_steps or -1,  # -1 leaves it to the epochs
        "num_train_epochs": training.num_train_epochs or 1.0,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "per_device_eval_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "gradient_checkpointing": training.gradient_checkpointing,
        "deepspeed": _deepspeed(training, dtype, on_gpu),
        "bf16": dtype == torch.bfloat16,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "seed": seed,
        "eval_on_start": True,
        "eval_strategy": "steps" if training.eval_steps else "no",
        "eval_steps": training.eval_steps,
        "logging_steps": training.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **_optimizer(training.optimizer),
    }


def _optimizer(settings: OfflineOptimizer) -> dict[str, Any]:
    schedule = settings.lr_scheduler_type
    optim = settings.optim
    return settings.model_dump() | {
        "optim": "adamw_torch_fused" if optim == "adamw_torch" else optim,
        # transformers' `constant` ignores the warm-up.
        "lr_scheduler_type": "constant_with_warmup" if schedule == "constant" else schedule,
    }


def _deepspeed(training: OfflineTraining, dtype: "torch.dtype", on_gpu: bool) -> dict[str, Any]:
    """The policy's DeepSpeed settings, with what transformers fills in from its own arguments left to it."""
    from rlpipe.training.sharding import Sharding, deepspeed_config

    config = deepspeed_config(dtype, Sharding(training.zero_stage), training.optimizer.max_grad_norm, _BUCKET, on_gpu)
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    config |= dict.fromkeys(auto, "auto")
    if training.zero_stage == 3:
        by_model_size = ("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
        config["zero_optimization"] |= dict.fromkeys(by_model_size, "auto")
    return config
