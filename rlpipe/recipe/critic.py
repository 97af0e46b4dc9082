"""The value model of algorithms that have one."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from rlpipe.recipe.adapter import Adapter, changes_the_base, check_learner, check_zero_stage
from rlpipe.recipe.model import Dtype, Model, quantization_of
from rlpipe.recipe.qlora import check_quantized
from rlpipe.recipe.roles import TrainedRole, check_shared


class Critic(TrainedRole):
    """The critic's model and training. It sees the policy's minibatches, as often as the policy does."""

    model: Model | None = None
    """What it starts from: a reward model (`${stages.NAME.model}`), whose score head becomes the value head, or a
    language model, which gets a new head; the policy's own model if absent, in 4 bits only beneath an adapter."""
    dtype: Dtype | None = None
    """Computation type; that of its model if absent."""
    adapter: Adapter | None = None
    """What is trained in place of the model's own weights, beside the value head; absent for full fine-tuning."""
    value_clip: PositiveFloat | None = 0.2
    """How far the updates on one batch may carry a value, in reward units; null leaves it free."""
    warmup_steps: NonNegativeInt = 0
    """RL steps at the beginning in which only the critic learns."""
    share: Annotated[
        Literal["policy", "base"] | None,
        Field(
            description="`policy` has it live in the policy's processes, as many ranks on the same GPUs: nothing is "
            "reserved for it, and they take turns. `base` has it live there on the policy's frozen base model, which "
            "is held once, with an adapter and a value head of its own. Absent, it has processes of its own."
        ),
    ] = None

    @model_validator(mode="after")
    def _is_somewhere(self) -> "Critic":
        check_shared(self)
        return self

    @model_validator(mode="after")
    def _learns_on_its_model(self) -> "Critic":
        if self.model is not None:
            check_quantized(quantization_of(self.model), self.adapter)
        return self

    @model_validator(mode="after")
    def _adapter_learns(self) -> "Critic":
        if self.adapter is not None:
            check_learner(self.adapter, "compute values that depend on what was dropped")
            check_zero_stage(self.adapter, self.zero_stage, "critic")
        return self

    @model_validator(mode="after")
    def _base_can_be_shared(self) -> "Critic":
        if self.share != "base":
            return self
        if self.adapter is None:
            raise ValueError(
                "share=base: the shared base model is frozen, so the critic needs an adapter of its own; give one "
                "(critic.adapter.kind=lora), or set share to policy"
            )
        for key in ("model", "dtype"):
            if getattr(self, key) is not None:
                raise ValueError(
                    f"share=base has the critic stand on the policy's own model; leave {key} out, or set share to "
                    "policy"
                )
        setting = changes_the_base(self.adapter)
        if setting:
            raise ValueError(
                f"adapter.{setting} changes the base model, which share=base has the policy use, too; leave "
                f"{setting.split('=')[0]} out, or set share to policy"
            )
        check_unsplit(self.zero_stage, "critic")
        return self


def check_unsplit(zero_stage: int, key: str) -> None:
    """Raises ValueError for a stage in which DeepSpeed splits the parameters that two roles are to have in common."""
    if zero_stage == 3:
        raise ValueError(
            f"{key}.zero_stage=3 splits the base model for one role alone, and critic.share=base has two on it; set "
            f"{key}.zero_stage to 2 or less, or critic.share to policy"
        )
