"""The value model of algorithms that have one."""

from pydantic import NonNegativeInt, PositiveFloat, model_validator

from rlpipe.recipe.model import Dtype, Model, quantization_of
from rlpipe.recipe.roles import Share, TrainedRole, check_shared


class Critic(TrainedRole):
    """The critic's model and training. It sees the policy's minibatches, as often as the policy does."""

    model: Model | None = None
    """What it starts from: a reward model (`${stages.NAME.model}`), whose score head becomes the value head, or a
    language model, which gets a new head; the policy's own model if absent."""
    dtype: Dtype | None = None
    """Computation type; that of its model if absent."""
    value_clip: PositiveFloat | None = 0.2
    """How far the updates on one batch may carry a value, in reward units; null leaves it free."""
    warmup_steps: NonNegativeInt = 0
    """RL steps at the beginning in which only the critic learns."""
    share: Share = None

    @model_validator(mode="after")
    def _is_somewhere(self) -> "Critic":
        check_shared(self)
        return self

    @model_validator(mode="after")
    def _is_whole(self) -> "Critic":
        if self.model is not None and quantization_of(self.model) is not None:
            raise ValueError(
                "model.quantization: the critic trains all of its weights, which 4-bit ones do not let; leave it out"
            )
        return self
