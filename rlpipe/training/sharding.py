"""How a model is spread over the ranks of its role, by DeepSpeed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rlpipe.models.quantized import is_packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LARGEST_BUCKET = 200_000_000
"""Elements that ZeRO communicates at once; it allocates buffers of this size."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a model is spread over the ranks of its role."""

    zero_stage: int = 0
    offload_optimizer: bool = False
    """The optimizer's states rest and step in host memory; from stage 1."""
    offload_param: bool = False
    """Parameters rest in host memory until they compute; stage 3."""

    def settings(self, on_gpu: bool) -> dict[str, Any]:
        """DeepSpeed's."""
        host = {"device": "cpu", "pin_memory": on_gpu}
        optimizer = {"offload_optimizer": host} if self.offload_optimizer else {}
        return {"stage": self.zero_stage} | optimizer | ({"offload_param": host} if self.offload_param else {})


def deepspeed_config(
    dtype: torch.dtype, sharding: Sharding, max_grad_norm: float, parameters: int, on_gpu: bool
) -> dict[str, Any]:
    """DeepSpeed's configuration for `parameters` trained parameters.

    In bfloat16, ZeRO stage 0 becomes 1: DeepSpeed adds up the gradients of stage 0 in bfloat16, and stage 1 gives the
    same result in float32 with less memory.
    """
    bfloat16 = dtype == torch.bfloat16
    bucket = min(parameters, _LARGEST_BUCKET)
    return {
        # Batch sizes have no meaning here: losses are scaled by us, and boundaries set by us.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        # In stage 0 DeepSpeed clips without telling the norm, so that is done in `TrainingEngine`.
        "gradient_clipping": max_grad_norm if bfloat16 or sharding.zero_stage else 0.0,
        "zero_optimization": {
            **sharding.settings(on_gpu),
            "stage": max(sharding.zero_stage, 1) if bfloat16 else sharding.zero_stage,
            "overlap_comm": on_gpu,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device in every step
    }


def loaded(load: "Callable[[], PreTrainedModel]", sharding: Sharding, dtype: torch.dtype) -> "PreTrainedModel":
    """The model that `load` takes from files with transformers. With stage 3 it is split over the ranks on the way,
    weight by weight: no rank ever holds a whole one, neither on its GPU nor in host memory. Collective then; the ranks
    have met before."""
    if sharding.zero_stage != 3:
        return load()
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    config = deepspeed_config(dtype, sharding, 0.0, _LARGEST_BUCKET, torch.cuda.is_available())
    held = HfDeepSpeedConfig(config)  # transformers looks for it in a global that does not keep it alive
    try:
        return load()
    finally:
        unset_hf_deepspeed_config()
        del held


def declare_direct(model: torch.nn.Module) -> None:
    """Tell ZeRO-3 of parameters that a module has in a `ParameterDict`, which is never called by itself (AdaLoRA, IA3,
    VeRA). DeepSpeed finds them as they are used, and gives up with a `tracing error` if that is after it has learnt in
    which order parameters come: where evaluations or checkpoints come between steps."""
    import deepspeed

    for module in model.modules():
        for child in module.children():
            if isinstance(child, torch.nn.ParameterDict):
                for parameter in child.values():
                    deepspeed.zero.register_external_parameter(module, parameter)


def size(parameter: torch.nn.Parameter) -> torch.Size:
    """The shape of the whole parameter, which may be split, or packed into 4 bits a weight."""
    if is_packed(parameter):
        return torch.Size(parameter.quant_state.shape)
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def sizes(model: torch.nn.Module) -> tuple[int, int]:
    """How many parameters of a model are trained, and how many there are."""
    everything = [(size(p).numel(), p.requires_grad) for p in model.parameters()]
    return sum(count for count, trained in everything if trained), sum(count for count, _ in everything)
