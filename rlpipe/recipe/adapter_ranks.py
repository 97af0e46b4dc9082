"""AdaLoRA: low-rank matrices whose ranks are shared out while they learn. Keys are PEFT's."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rlpipe.recipe.adapter_base import Dropout, Targets
from rlpipe.recipe.base import Strict
from rlpipe.recipe.training import OfflineTraining

Decay = Annotated[float, Field(gt=0, lt=1)]


class AdaLoraAdapter(Strict):
    """W + scale * B diag(E) A, of which the least important singular values E are set to 0, over all layers together,
    until target_r are left in the mean (Zhang et al. 2023, arXiv 2303.10512)."""

    kind: Literal["adalora"]
    """Adaptive low-rank adaptation: layers that matter more keep higher ranks."""
    init_r: PositiveInt = 12
    """Rank of each layer at first."""
    target_r: PositiveInt = 8
    """Mean rank of the layers in the end; below init_r."""
    tinit: NonNegativeInt = 0
    """Optimizer steps before the first rank goes."""
    tfinal: NonNegativeInt = 0
    """Last optimizer steps, in which the ranks stay as they are. Between, the budget falls as a cubic."""
    deltaT: PositiveInt = 1
    """Optimizer steps between two allocations."""
    beta1: Decay = 0.85
    """Decay of the running mean of sensitivities (eq. 9), which are |weight * gradient|."""
    beta2: Decay = 0.85
    """Decay of the running mean of how far they stray from it (eq. 10)."""
    orth_reg_weight: NonNegativeFloat = 0.5
    """Weight of |A A^T - I| and |B^T B - I| in what is minimised (eq. 4, as the mean of the Frobenius norms)."""
    lora_alpha: PositiveFloat = 32
    """Numerator of the scale, which is lora_alpha / init_r."""
    lora_dropout: Dropout = 0.0
    """Share of the adapter's inputs dropped in training."""
    target_modules: Targets = "all-linear"
    """Names of the modules that get one, such as `q_proj`; `all-linear` is every linear layer but the output head."""
    served_by_vllm: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True

    @model_validator(mode="after")
    def _falls(self) -> "AdaLoraAdapter":
        if self.target_r >= self.init_r:
            raise ValueError(
                f"target_r={self.target_r} is not below init_r={self.init_r}, so that no rank could go; raise init_r, "
                "or take kind=lora for a fixed rank"
            )
        return self


def check_allocation(adapter: object, training: OfflineTraining) -> None:
    """Raises ValueError for an AdaLoRA that cannot come to its target rank in this training."""
    if not isinstance(adapter, AdaLoraAdapter):
        return
    if training.max_steps is None:
        raise ValueError(
            "adapter.kind=adalora shares its ranks out by the number of steps: give train.max_steps in place of "
            "train.num_train_epochs"
        )
    if adapter.tinit + adapter.tfinal + 2 > training.max_steps:
        raise ValueError(
            f"adapter.tinit={adapter.tinit} and adapter.tfinal={adapter.tfinal} leave less than two of "
            f"train.max_steps={training.max_steps} steps in which ranks could go; lower them, or train for longer"
        )
    early = [key for key in ("load_best_model_at_end", "early_stopping_patience") if getattr(training, key)]
    if early:
        raise ValueError(
            f"train.{early[0]} could end before adapter.kind=adalora has come to its target rank, which is at step "
            "max_steps - tfinal; leave it out"
        )
