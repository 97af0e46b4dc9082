"""What the roles of a run have in common: how many processes, how a model is spread over them, and where they are."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from rlpipe.recipe.base import Strict
from rlpipe.recipe.model import Dtype
from rlpipe.recipe.training import Checkpoints, Optimizer, Resources, Threads, ZeroStage

Share = Annotated[
    Literal["policy"] | None,
    Field(
        description="`policy` has it live in the policy's processes, as many ranks on the same GPUs: nothing is "
        "reserved for it, and they take turns. Absent, it has processes of its own."
    ),
]


class TrainedRole(Strict):
    """A model that learns, under DeepSpeed."""

    optimizer: Optimizer = Optimizer()
    """AdamW and its learning-rate schedule."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, in far less memory."""
    ranks: PositiveInt = 1
    """Data-parallel training processes."""
    zero_stage: ZeroStage = 0
    """DeepSpeed ZeRO: 0 replicates, 1 shards optimizer states, 2 also gradients, 3 also parameters."""
    offload_optimizer: bool = False
    """Keep the optimizer's states (12 bytes a parameter) in host memory and step there; slower. From stage 1."""
    offload_param: bool = False
    """Keep parameters in host memory, too, and fetch each layer as it computes. Stage 3."""
    threads: Threads = 0
    resources: Resources = Resources()
    """What each rank reserves."""

    @model_validator(mode="after")
    def _can_offload(self) -> "TrainedRole":
        for key, least in (("offload_optimizer", 1), ("offload_param", 3)):
            if getattr(self, key) and self.zero_stage < least:
                raise ValueError(
                    f"{key}=true with zero_stage={self.zero_stage}: DeepSpeed offloads what it shards; set zero_stage "
                    f"to {least}{'' if least == 3 else ' or more'}"
                )
        if self.offload_optimizer and self.optimizer.optim != "adamw_torch":
            raise ValueError(
                f"offload_optimizer=true steps in host memory, which optimizer.optim={self.optimizer.optim} is not "
                "for; set optim to adamw_torch, or leave offload_optimizer out"
            )
        return self


class PolicyTraining(TrainedRole, Checkpoints):
    """The policy's training side in online RL."""

    minibatches: PositiveInt = 1
    """Optimizer steps the batch of one RL step is split into."""
    epochs: PositiveInt = 1
    """Passes over each batch."""
    max_restarts: NonNegativeInt = 3
    """How often in a row, without a step in between, policy, critic and reference start again because a process of
    theirs died or does not answer, before the run gives up."""
    tokens_per_micro_batch: PositiveInt = 16384
    """Token budget (after padding) of one forward and backward; lower it when memory runs out."""
    metric_for_best_model: str = "reward"
    """Which held-out metric, by its highest value, tells the best model: reward, reward/NAME, accuracy or pass@k."""
    load_best_model_at_end: bool = False
    """Whether the result is the best of the checkpoints, which is kept beside the last ones, and not the last one."""

    @model_validator(mode="after")
    def _best_is_kept(self) -> "PolicyTraining":
        if self.load_best_model_at_end and self.save_steps is None:
            raise ValueError("load_best_model_at_end takes the best of the checkpoints; set save_steps, too")
        return self


class FrozenRole(Strict):
    """A model that only answers."""

    ranks: PositiveInt = 1
    """Processes among which its work is shared out."""
    zero_stage: Literal[0, 3] = 0
    """0 has the whole model on each rank; 3 (DeepSpeed ZeRO) splits its parameters over the ranks, for one that is too
    large for a GPU."""
    offload_param: bool = False
    """Weights rest in host memory: all of them between calls, or with stage 3 each layer until it computes."""
    share: Share = None
    threads: Threads = 0
    resources: Resources = Resources()
    """What each rank reserves."""

    @model_validator(mode="after")
    def _is_somewhere(self) -> "FrozenRole":
        check_shared(self)
        return self


def check_shared(role: Strict) -> None:
    """Raises ValueError if a role in the policy's processes has settings of processes of its own."""
    own = {"ranks": 1, "threads": 0, "resources": Resources()}
    set_here = [key for key, default in own.items() if getattr(role, key) != default]
    if role.share and set_here:
        raise ValueError(
            f"share={role.share} puts this role into the policy's processes, which `train` describes: leave out "
            f"{' and '.join(set_here)}, or share"
        )


class Reference(FrozenRole):
    """The frozen model that the policy is kept close to: the one that it began as."""

    dtype: Dtype | None = None
    """Computation type; the policy's (`model.dtype`) if absent. A coarser one adds its rounding to the KL."""
