"""The value model of algorithms that have one."""

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from rlpipe.recipe.base import Strict
from rlpipe.recipe.model import Model
from rlpipe.recipe.training import Optimizer, Resources, Threads, ZeroStage


class Critic(Strict):
    """The critic's model and training. It sees the policy's minibatches, as often as the policy does."""

    model: Model | None = None
    """What it starts from: a reward model (`${stages.NAME.model}`), whose score head becomes the value head, or a
    language model, which gets a new head; the policy's own model if absent."""
    optimizer: Optimizer = Optimizer()
    """AdamW and its learning-rate schedule."""
    value_clip: PositiveFloat | None = 0.2
    """How far the updates on one batch may carry a value, in reward units; null leaves it free."""
    warmup_steps: NonNegativeInt = 0
    """RL steps at the beginning in which only the critic learns."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, in far less memory."""
    ranks: PositiveInt = 1
    """Data-parallel training processes."""
    zero_stage: ZeroStage = 0
    """DeepSpeed ZeRO: 0 replicates, 1 shards optimizer states, 2 also gradients, 3 also parameters."""
    threads: Threads = 0
    resources: Resources = Resources()
    """What each rank reserves."""
