"""Optimisation settings, in the names of Hugging Face / TRL where those exist."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rlpipe.recipe.base import Strict

ZeroStage = Literal[0, 1, 2, 3]
Threads = Annotated[
    int, Field(ge=0, description="CPU threads of each process of this role; 0 shares the cores of a node evenly.")
]


class Optimizer(Strict):
    """AdamW with a learning-rate schedule."""

    optim: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = "adamw_torch"
    """AdamW in TRL's names: torch's, with running means in float32; bitsandbytes' with them in 8 bits (Dettmers et al.
    2022, arXiv 2110.02861), a quarter of that memory; or that one with them in memory that a GPU pages out to the
    host."""
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


OfflineSchedule = Literal[
    "constant", "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "inverse_sqrt",
    "warmup_stable_decay",
]  # fmt: skip
_SCHEDULE_KWARGS: dict[OfflineSchedule, tuple[str, ...]] = {
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": ("num_decay_steps", "num_stable_steps", "decay_type", "min_lr_ratio", "num_cycles"),
}
_NEEDED_KWARGS = {"cosine_with_min_lr": ("min_lr", "min_lr_rate"), "warmup_stable_decay": ("num_decay_steps",)}
"""Of these, a schedule needs one."""


class OfflineOptimizer(Optimizer):
    """The same with all schedules of transformers."""

    lr_scheduler_type: OfflineSchedule = "constant"
    """Shape after warm-up, as transformers names it."""
    lr_scheduler_kwargs: dict[str, float | int | str] = {}
    """Arguments of the schedule in transformers' names, for example `{min_lr_rate: 0.1}` of cosine_with_min_lr."""

    @model_validator(mode="after")
    def _kwargs_fit(self) -> "OfflineOptimizer":
        kind, known = self.lr_scheduler_type, _SCHEDULE_KWARGS.get(self.lr_scheduler_type, ())
        unknown = [name for name in self.lr_scheduler_kwargs if name not in known]
        if unknown:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"lr_scheduler_kwargs.{unknown[0]} is no argument of lr_scheduler_type={kind}; {has}")
        needed = _NEEDED_KWARGS.get(kind, ())
        if needed and not self.lr_scheduler_kwargs.keys() & set(needed):
            raise ValueError(f"lr_scheduler_type={kind} needs lr_scheduler_kwargs: {{{needed[0]}: ...}}")
        return self


class SftOptimizer(OfflineOptimizer):
    """The same with the defaults of SFT."""

    learning_rate: PositiveFloat = 1e-3
    """Highest learning rate, reached after warm-up."""
    lr_scheduler_type: OfflineSchedule = "cosine"
    """Shape after warm-up, as transformers names it."""
    warmup_steps: NonNegativeInt = 20
    """Optimizer steps over which the rate rises from 0."""


class RewardModelOptimizer(OfflineOptimizer):
    """The same with the defaults of reward modelling."""

    lr_scheduler_type: OfflineSchedule = "cosine"
    """Shape after warm-up, as transformers names it."""
    warmup_steps: NonNegativeInt = 20
    """Optimizer steps over which the rate rises from 0."""


class Resources(Strict):
    """What one process of a role reserves on the cluster."""

    cpus: PositiveFloat = 0.5
    """Ray CPUs (a reservation, not a limit)."""
    gpus: NonNegativeFloat | Literal["auto"] = "auto"
    """Ray GPUs; auto is 1 where the cluster has GPUs and 0 elsewhere."""

    def gpus_where(self, there: bool, auto: int = 1) -> float:
        """What a process reserves, `there` being whether the cluster has GPUs, and `auto` what auto is where it has."""
        return (float(auto) if there else 0.0) if self.gpus == "auto" else float(self.gpus)

    def bundle(self, there: bool, auto: int = 1) -> dict[str, float]:
        """The same with its CPUs, as Ray takes it."""
        gpus = self.gpus_where(there, auto)
        return {"CPU": self.cpus} | ({"GPU": gpus} if gpus else {})


class Checkpoints(Strict):
    """When a training stage writes checkpoints, and how many stay; names are TRL's."""

    save_steps: PositiveInt | None = None
    """Steps between checkpoints, from which `rlpipe resume` goes on; none are written if absent."""
    save_total_limit: PositiveInt = 2
    """How many checkpoints are kept; older ones are removed once a new one stands."""

    @model_validator(mode="after")
    def _limit_is_used(self) -> "Checkpoints":
        if self.save_steps is None and self.save_total_limit != Checkpoints.model_fields["save_total_limit"].default:
            raise ValueError("save_total_limit changes nothing without save_steps; set that, too")
        return self


class OfflineTraining(Checkpoints):
    """What TRL's trainers have in common; names are TRL's."""

    max_steps: PositiveInt | None = None
    """Optimizer steps; either this or num_train_epochs."""
    num_train_epochs: PositiveFloat | None = None
    """Passes over the training records, in place of max_steps; 0.5 is half of them."""
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
    max_restarts: NonNegativeInt = 3
    """How often in a row, without a step in between, training starts again from its last checkpoint because a process
    of it died or does not answer, before the run gives up."""
    logging_steps: PositiveInt = 10
    """Optimizer steps between reported metrics."""
    eval_steps: PositiveInt | None = None
    """Optimizer steps between evaluations of the held-out records; only before and after training if absent."""
    metric_for_best_model: Literal["loss"] = "loss"
    """Which held-out metric tells the best model."""
    load_best_model_at_end: bool = False
    """Whether the result is the model of the best evaluation, and not the last one."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after so many evaluations without an improvement; never if absent."""
    early_stopping_threshold: NonNegativeFloat = 0.0
    """What counts as an improvement for that: more than this."""

    @property
    def duration(self) -> str:
        """For people: `600 steps`."""
        return f"{self.max_steps} steps" if self.max_steps else f"{self.num_train_epochs:g} epochs"

    @model_validator(mode="after")
    def _ends(self) -> "OfflineTraining":
        if (self.max_steps is None) == (self.num_train_epochs is None):
            both = "both are given; set one of them to null" if self.max_steps else "neither is given; set one of them"
            raise ValueError(f"max_steps or num_train_epochs says when training ends, and {both}")
        return self

    @model_validator(mode="after")
    def _stopping_is_possible(self) -> "OfflineTraining":
        for key, value in (
            ("early_stopping_patience", self.early_stopping_patience),
            ("load_best_model_at_end", self.load_best_model_at_end),
        ):
            never = self.eval_steps is None or (self.max_steps is not None and self.eval_steps >= self.max_steps)
            if value and never:
                raise ValueError(f"{key} needs evaluations during training; set eval_steps below max_steps")
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise ValueError("early_stopping_threshold changes nothing without early_stopping_patience; set that, too")
        return self

    @model_validator(mode="after")
    def _checkpoints_fit(self) -> "OfflineTraining":
        if self.save_steps is not None and self.save_steps % self.logging_steps:
            raise ValueError(
                f"save_steps={self.save_steps} is no multiple of logging_steps={self.logging_steps}: after a resume a "
                "logged mean would leave out the steps before the checkpoint; choose a multiple"
            )
        return self


class SftTraining(OfflineTraining):
    """SFT through TRL's SFTTrainer; names are TRL's."""

    optimizer: SftOptimizer = SftOptimizer()
    """AdamW and its learning-rate schedule."""
    max_length: PositiveInt = 1024
    """Longest record in tokens; longer ones are truncated, and the count is reported, or split."""
    packing: bool = False
    """Pack several records into each max_length sequence."""
    packing_strategy: Literal["bfd", "bfd_split"] = "bfd"
    """What packing does with records above max_length: `bfd` truncates them, `bfd_split` makes several of each, so
    that all of a long text is learned; held-out ones are split alike."""
    metric_for_best_model: Literal["loss", "token_accuracy"] = "loss"
    """Which held-out metric tells the best model."""
    loss_on: Literal["completion", "assistant", "all"] = "completion"
    """Tokens in the loss: the completion, every assistant turn (the template must mark them), or all."""

    @model_validator(mode="after")
    def _packs(self) -> "SftTraining":
        if self.packing_strategy != "bfd" and not self.packing:
            raise ValueError(
                f"packing_strategy={self.packing_strategy} changes nothing without packing; set packing=true, or leave "
                "it out"
            )
        return self


class RewardModelTraining(OfflineTraining):
    """Reward modelling through TRL's RewardTrainer; names are TRL's."""

    optimizer: RewardModelOptimizer = RewardModelOptimizer()
    """AdamW and its learning-rate schedule."""
    max_length: PositiveInt = 1024
    """Longest of a pair's two sequences in tokens; longer pairs are left out, and the count is reported."""
    metric_for_best_model: Literal["loss", "pair_accuracy", "margin"] = "loss"
    """Which held-out metric tells the best model."""
    truncation_side: Literal["left"] | None = None
    """`left` keeps longer pairs, without the first tokens of what both sides share: the early turns of a dialogue."""
    center_rewards_coefficient: NonNegativeFloat = 0.0
    """Weight of (chosen + rejected)^2 in the loss, which centres the scores on 0 (Eisenstein et al. 2023, arXiv
    2312.09244, eq. 2, recommends 0.01); 0 leaves it out."""
