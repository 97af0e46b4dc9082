"""Bytes of a model under DeepSpeed, by ZeRO stage: weights, master weights, optimizer, gradients, buffers.

What is counted is what DeepSpeed 0.19 allocates with the settings of `rlpipe.training.sharding`; docs/memory.md has the
formulas and says where they come from. T is the number of trained parameters, F that of frozen ones, N of ranks, and b
the bytes of an element that computes.
"""

import math
from dataclasses import dataclass, field

from rlpipe.plan.usage import Parts, added

LIVE_PARAMETERS = 1_000_000_000
"""Parameters that ZeRO-3 keeps whole at most while it computes (`stage3_max_live_parameters`)."""
ALLREDUCE = 500_000_000
"""Elements that DeepSpeed sends at once in stage 0."""
KEPT_WHOLE = 100_000
"""Tensors with fewer elements stay whole in ZeRO-3 (`stage3_param_persistence_threshold`)."""
_OPTIMIZER = {"adamw_torch": 8.0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256}
"""Bytes of AdamW's two running means for each parameter: in float32, or in 8 bits with a scale for each 256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A trained model, and how it is spread over the ranks of its role."""

    trained: int
    frozen: int
    """Other parameters, in the type that computes."""
    packed: int = 0
    """Bytes of frozen 4-bit weights, which come on top."""
    small: int = 0
    """Parameters in tensors that ZeRO-3 keeps whole."""
    largest: int = 0
    """Parameters of the largest trained tensor."""
    width: int
    """b."""
    ranks: int
    stage: int
    optim: str = "adamw_torch"
    offload_optimizer: bool = False
    offload_param: bool = False
    bucket: int
    """Elements that ZeRO sends at once, at most."""
    on_gpu: bool
    reduces_alone: bool = False
    """Whether stage 0 copies gradients into a buffer even where there is a single rank, as TRL has it."""

    @property
    def zero(self) -> int:
        """The stage that runs: in bfloat16, 0 is 1 (`deepspeed_config`)."""
        return max(self.stage, 1) if self.width == 2 else self.stage

    @property
    def accumulates_apart(self) -> bool:
        """DeepSpeed's BF16_Optimizer, which stage 1 in bfloat16 is: whole gradients in float32 on every rank."""
        return self.width == 2 and self.zero == 1 and not self.offload_optimizer

    @property
    def share(self) -> int:
        """T / N."""
        return math.ceil(self.trained / self.ranks)

    @property
    def filled(self) -> int:
        """Elements that a bucket ever holds."""
        return min(self.trained, self.bucket)

    @property
    def buckets(self) -> int:
        """Elements of the buckets of stages 1 and 2: two whole ones where sending goes on beside the backward pass, as
        on a GPU. On a CPU memory that nothing is written to is not taken."""
        return 2 * self.bucket if self.on_gpu else self.filled


@dataclass(frozen=True, slots=True)
class States:
    """Bytes of a rank's model."""

    resident: Parts
    """On the device, at all times: weights, master weights, optimizer."""
    accumulated: Parts
    """Beside them from the second micro-batch on, before the backward pass adds to it."""
    backward: Parts
    """Beside them at the end of the backward pass."""
    step: Parts
    """Beside them in the optimizer step."""
    offloaded: Parts = field(default_factory=dict)
    """In host memory instead of on the device."""
    computing: Parts = field(default_factory=dict)
    """Beside them while the model computes."""
    sending: Parts = field(default_factory=dict)
    """What is left of that when gradients are sent for the first time in the backward pass."""


def states(spread: Spread) -> States:
    """What a rank holds."""
    if spread.zero == 0:
        return _replicated(spread)
    if spread.zero == 3:
        return _split(spread)
    return _bf16(spread) if spread.accumulates_apart else _sharded(spread)


def _weights(spread: Spread) -> int:
    return spread.width * (spread.trained + spread.frozen) + spread.packed


def optimizer_bytes(elements: int, optim: str) -> int:
    """Of AdamW's running means."""
    return math.ceil(_OPTIMIZER[optim] * elements)


def _replicated(spread: Spread) -> States:
    """Stage 0 in float32: torch's own gradients, and a copy of up to `ALLREDUCE` of them while they are sent."""
    gradients = 4 * spread.trained
    sends = spread.ranks > 1 or spread.reduces_alone
    resident = {"weights": _weights(spread), "optimizer": optimizer_bytes(spread.trained, spread.optim)}
    backward = {"gradients": gradients, "communication": 4 * min(spread.trained, ALLREDUCE) if sends else 0}
    return States(resident, {"gradients": gradients}, backward, {"gradients": gradients})


def _bf16(spread: Spread) -> States:
    """Stage 1 in bfloat16 (BF16_Optimizer): beside the weights' own gradients a whole set in float32, never sharded."""
    resident = {
        "weights": _weights(spread),
        "master weights": 4 * spread.share,
        "optimizer": optimizer_bytes(spread.share, spread.optim),
        "gradients": 4 * spread.trained,
    }
    own = {"gradients": 2 * spread.trained}
    return States(resident, {}, own, own)


def _sharded(spread: Spread) -> States:
    """Stages 1 and 2 (DeepSpeedZeroOptimizer): a bucket that gradients are gathered in, a copy of it while it is sent,
    and the rank's own share of the gradients. What has not gone into the bucket waits in stage 1."""
    staged = 4 if spread.zero == 1 else spread.width  # stage 1 adds up in float32, stage 2 where it receives
    waiting = staged * (spread.trained - spread.filled) if spread.zero == 1 else 0
    buckets = staged * spread.buckets
    sent = staged * spread.filled if spread.ranks > 1 else 0
    own = 4 * spread.share
    resident = {"weights": _weights(spread)}
    kept = {"master weights": 4 * spread.share, "optimizer": optimizer_bytes(spread.share, spread.optim)}
    if spread.offload_optimizer:
        offloaded = kept | {"gradients": own, "communication": spread.width * (spread.share + spread.largest)}
        on_device = {"gradients": waiting, "communication": buckets + sent + spread.width * spread.largest}
        return States(resident, {"gradients": waiting}, on_device, {}, offloaded)
    norm = 8 * min(spread.largest, spread.share)  # of each gradient in turn, in float64
    return States(
        resident | kept,
        {"gradients": own if spread.zero == 2 else staged * spread.trained},
        {"gradients": waiting + own, "communication": buckets + max(sent - own, 0)},
        {"gradients": own, "communication": max(own, norm, _gathered_after_step(spread) - own)},
    )


def _gathered_after_step(spread: Spread) -> int:
    """Gloo gathers the new weights beside the old ones."""
    return 0 if spread.on_gpu or spread.ranks == 1 else spread.width * spread.trained


def _split(spread: Spread) -> States:
    """Stage 3: of everything a share, but for small tensors; while it computes, up to `LIVE_PARAMETERS` whole. The
    backward pass lets go of a layer when it has its gradients, so that at its end, where a bucket that holds all
    gradients is sent, none is left."""
    everything = spread.trained + spread.frozen
    weights = math.ceil((spread.width * everything + spread.packed) / spread.ranks) + spread.width * spread.small
    whole = spread.width * min(everything - spread.small, LIVE_PARAMETERS) + spread.packed
    # In float32 the weights were to be their own masters, but DeepSpeed compares a torch.device with a string there.
    kept = {"master weights": 4 * spread.share, "optimizer": optimizer_bytes(spread.share, spread.optim)}
    own = {"gradients": 4 * spread.share}
    bucket = spread.width * (spread.bucket if spread.on_gpu else spread.filled)
    sent = spread.width * spread.filled * (1 if spread.on_gpu else 2)  # gloo reduces a copy of what it is given
    resident = {"weights": weights, "communication": bucket}
    offloaded: Parts = {}
    if spread.offload_param:
        resident, offloaded = {"weights": spread.width * spread.small, "communication": bucket}, {"weights": weights}
    backward, computing = {"communication": sent}, {"gathered weights": whole}
    left = {"gathered weights": max(0, whole - spread.width * spread.filled) if spread.filled < spread.trained else 0}
    if spread.offload_optimizer:
        offloaded = added(offloaded, kept, own, own)
        return States(resident, {}, backward, {}, offloaded, computing, left)
    return States(added(resident, kept, own), {}, backward, own, offloaded, computing, left)
