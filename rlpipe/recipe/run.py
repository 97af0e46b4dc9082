"""Settings of a run that are not the algorithm's: deadlines, sampling ahead, tracking, verification."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from rlpipe.recipe.base import Strict


class Deadlines(Strict):
    """Seconds each kind of remote wait may take before the run stops and says who waited on whom."""

    start: PositiveFloat = 300.0
    """Starting a role: process, imports, model."""
    preflight: PositiveFloat = 120.0
    """All checks of the cluster before a run loads anything; a process is started on each node."""
    placement: PositiveFloat = 60.0
    """Getting the cluster's resources, at the start and again where nodes are lost."""
    rollout: PositiveFloat = 600.0
    """One call of an engine, and any response to arrive while some are outstanding."""
    reward: PositiveFloat = 120.0
    """Scoring one group, or one batch of groups, with one reward."""
    environment: PositiveFloat = 60.0
    """One step of an environment; an episode whose environment is later is a failure."""
    train: PositiveFloat = 600.0
    """One call of a training role."""
    publish: PositiveFloat = 120.0
    """Getting new weights into every engine and proving it."""
    heartbeat: PositiveFloat = 30.0
    """A sign of life from the process of an engine or a training rank, which it gives while it computes, too."""


class Run(Strict):
    """How far sampling may be ahead of training."""

    max_staleness: NonNegativeInt = 0
    """How many versions older than the policy that is trained the one may be that sampled a response's first token. 0
    samples for a step when the one before is done; from 1 on engines generate while the policy trains, and
    `algorithm.correction` says what is done about it."""
    min_effective_sample_size: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """While the effective sample size of a step (metric `mismatch/effective_samples`, a share of its tokens) is below
    this, fewer steps ahead are sampled."""

    @model_validator(mode="after")
    def _has_something_to_hold_back(self) -> "Run":
        if self.min_effective_sample_size and not self.max_staleness:
            raise ValueError(
                f"min_effective_sample_size={self.min_effective_sample_size:g} holds sampling back, and with "
                "max_staleness=0 it is never ahead: leave it out, or set max_staleness to 1 or more"
            )
        return self


class Publishing(Strict):
    """How weights reach the engines, and how that is proven."""

    transport: Literal["auto", "object_store", "nccl", "ipc"] = "auto"
    """How full weights reach vLLM engines: `object_store` over host memory, `nccl` from GPU to GPU, `ipc` on the same
    GPU; auto is ipc with placement colocated and nccl with split, if policy and engines are on GPUs. Adapters always go
    over host memory."""
    adapter: Literal["served", "merged"] = "served"
    """How an adapter reaches them: `served` on the base model, which they have, or `merged` into full weights: more to
    send, and faster for vLLM to sample from."""
    base: Literal["dequantized", "original"] = "dequantized"
    """Under model.quantization, what the engines hold beneath the adapter: the 4-bit weights that the policy is trained
    on, dequantised, or the model as it was, from which samples come that the policy would not have written so."""
    tolerance: PositiveFloat | Literal["auto"] = "auto"
    """Largest mean absolute difference between the engine's and the trainer's log-probabilities of the
    probe tokens; auto is 1e-3 in float32 and 0.05 in bfloat16."""


class Tracking(Strict):
    """Where metrics go besides events.jsonl and the report."""

    tensorboard: bool = True
    """Write TensorBoard files to the run directory."""
    wandb: str | None = None
    """W&B project (the key comes from WANDB_API_KEY)."""
    mlflow: str | None = None
    """MLflow experiment (the server comes from MLFLOW_TRACKING_URI)."""
