"""Delta-LoRA: low-rank matrices whose every step also moves the weights beside them. Ours: PEFT has none."""

from typing import ClassVar, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from rlpipe.recipe.adapter_base import Targets
from rlpipe.recipe.base import Strict
from rlpipe.recipe.training import OfflineTraining


class DeltaLoraAdapter(Strict):
    """W + scale * B A, where W takes up update_ratio times what each step changes of scale * B A (Zi et al. 2023, arXiv
    2309.02411). Without dropout, as in the paper. Ours: PEFT has none."""

    kind: Literal["delta_lora"]
    """LoRA that moves the weights, too."""
    r: PositiveInt = 16
    """Rank of the matrices."""
    lora_alpha: PositiveFloat = 32
    """Numerator of the scale, which is lora_alpha / r."""
    target_modules: Targets = "all-linear"
    """Names of the modules that get one, such as `q_proj`; `all-linear` is every linear layer but the output head."""
    update_ratio: PositiveFloat = 0.5
    """How much of each change W takes up: the paper's lambda."""
    start_step: NonNegativeInt = 0
    """Optimizer steps before W moves: the paper's K."""
    served_by_vllm: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True


def check_base_can_move(adapter: object, training: OfflineTraining) -> None:
    """Raises ValueError for a Delta-LoRA whose base would stay as it is."""
    if not isinstance(adapter, DeltaLoraAdapter):
        return
    if training.max_steps is not None and adapter.start_step >= training.max_steps:
        raise ValueError(
            f"adapter.start_step={adapter.start_step} comes after the last of train.max_steps={training.max_steps} "
            "steps, so that no weight would move; lower it, or take adapter.kind=lora"
        )
