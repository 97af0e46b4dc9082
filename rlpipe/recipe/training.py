"""Optimisation settings, in the names of Hugging Face / TRL where those exist."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from rlpipe.recipe.base import Strict

ZeroStage = Literal[0, 1, 2, 3]
Threads = Annotated[
    int, Field(ge=0, description="CPU threads of each process of this role; 0 shares the cores of a node evenly.")
]


class Optimizer(Strict):
    """AdamW with a learning-rate schedule."""

    learning_rate: PositiveFloat = 1e-4
    """Highest learning rate, reached after warm-up."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    adam_beta1: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Decay of the running mean of gradients."""
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Decay of the running mean of squared gradients."""
    adam_epsilon: PositiveFloat = 1e-8
    """Added to the denominator of the update, for stability."""
    max_grad_norm: PositiveFloat = 1.0
    """Global gradient norm above which gradients are scaled down."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after warm-up: constant, or down to 0 at the last step."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps over which the rate rises from 0."""


class SftOptimizer(Optimizer):
    """The same with the defaults of SFT."""

    learning_rate: PositiveFloat = 1e-3
    """Highest learning rate, reached after warm-up."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape after warm-up: constant, or down to 0 at the last step."""
    warmup_steps: NonNegativeInt = 20
    """Optimizer steps over which the rate rises from 0."""


class RewardModelOptimizer(Optimizer):
    """The same with the defaults of reward modelling."""

    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape after warm-up: constant, or down to 0 at the last step."""
    warmup_steps: NonNegativeInt = 20
    """Optimizer steps over which the rate rises from 0."""


class Resources(Strict):
    """What one process of a role reserves on the cluster."""

    cpus: PositiveFloat = 0.5
    """Ray CPUs (a reservation, not a limit)."""
    gpus: NonNegativeFloat | Literal["auto"] = "auto"
    """Ray GPUs; auto is 1 where the cluster has GPUs and 0 elsewhere."""


class OfflineTraining(Strict):
    """What TRL's trainers have in common; names are TRL's."""

    max_steps: PositiveInt
    """Optimizer steps."""
    per_device_train_batch_size: PositiveInt = 64
    """Records per rank and micro-batch."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches per optimizer step."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, in far less memory."""
    ranks: PositiveInt = 1
    """Data-parallel training processes."""
    zero_stage: ZeroStage = 0
    """DeepSpeed ZeRO: 0 replicates, 1 shards optimizer states, 2 also gradients, 3 also parameters."""
    threads: Threads = 0
    resources: Resources = Resources()
    """What each rank reserves."""
    logging_steps: PositiveInt = 10
    """Optimizer steps between reported metrics."""


class SftTraining(OfflineTraining):
    """SFT through TRL's SFTTrainer; names are TRL's."""

    optimizer: SftOptimizer = SftOptimizer()
    """AdamW and its learning-rate schedule."""
    max_length: PositiveInt = 1024
    """Longest record in tokens; longer ones are truncated, and the count is reported."""
    packing: bool = False
    """Pack several records into each max_length sequence."""
    loss_on: Literal["completion", "assistant", "all"] = "completion"
    """Tokens in the loss: the completion, every assistant turn (the template must mark them), or all."""


class RewardModelTraining(OfflineTraining):
    """Reward modelling through TRL's RewardTrainer; names are TRL's."""

    optimizer: RewardModelOptimizer = RewardModelOptimizer()
    """AdamW and its learning-rate schedule."""
    max_length: PositiveInt = 1024
    """Longest of a pair's two sequences in tokens; longer pairs are left out, and the count is reported."""
    truncation_side: Literal["left"] | None = None
    """`left` keeps longer pairs, without the first tokens of what both sides share: the early turns of a dialogue."""
    center_rewards_coefficient: NonNegativeFloat = 0.0
    """Weight of (chosen + rejected)^2 in the loss, which centres the scores on 0 (Eisenstein et al. 2023, arXiv
    2312.09244, eq. 2, recommends 0.01); 0 leaves it out."""
