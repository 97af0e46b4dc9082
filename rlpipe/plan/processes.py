"""Memory of one process of each kind of role. docs/memory.md has the formulas."""

from dataclasses import dataclass
from typing import Any

from rlpipe.plan import activations
from rlpipe.plan.activations import Pass
from rlpipe.plan.architecture import Architecture
from rlpipe.plan.states import LIVE_PARAMETERS, Spread, States, states
from rlpipe.plan.usage import Parts, Usage, added
from rlpipe.plan.weights import Weights

MIB = 2**20
CONTEXT = 600 * MIB
"""What CUDA, its libraries and the allocator's rounding take of a GPU for each process: taken to be so, not measured
here."""
TRAINER = 800 * MIB
"""A process with torch, transformers, PEFT and DeepSpeed imported and no model: measured here on a CPU."""
ON_HOST = 3072 * MIB
"""The same beside a GPU, with the libraries of CUDA: taken to be so, not measured here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """A trained model on one rank, and what it computes."""

    shapes: Architecture
    weights: Weights
    spread: Spread
    positions: int
    """Of a micro-batch."""
    micro_batches: int
    """Of one optimizer step."""
    head: int
    """Bytes that the output head takes for a moment."""
    checkpointing: bool
    repeats_keys: bool
    beside: int = 0
    """Bytes of a frozen model in the same process, whole, such as DPO's reference."""
    file_bytes: int | None = None
    """Of the model's files, if they are known."""
    rests: bool = False
    """Whether it takes turns with another role on its GPU, and puts away what only a step needs."""


def spread_of(held: Weights, **settings: Any) -> Spread:
    """These weights, spread as `settings` say, which are the other fields of `Spread`."""
    return Spread(
        trained=held.trained,
        frozen=held.frozen,
        packed=held.packed,
        small=held.small,
        largest=held.largest,
        **settings,
    )


def learner(role: Learner) -> Usage:
    """Of a rank that trains."""
    held, spread = states(role.spread), role.spread
    one = Pass(
        shapes=role.shapes,
        positions=role.positions,
        width=spread.width,
        all_weights=not spread.packed and role.weights.rank == 0 and role.weights.frozen == 0,
        rank=role.weights.rank,
        checkpointing=role.checkpointing,
        repeats_keys=role.repeats_keys,
    )
    here = {} if spread.on_gpu else held.offloaded  # a CPU has no other memory to put it into
    guests = {"reference": role.beside, "model file": _mapped(role)}
    fixed = added(held.resident, here, guests, _process(spread.on_gpu))
    idle = _resting(held, role) if role.rests and spread.on_gpu else held.resident
    return Usage(
        moments=_moments(role, held, one, fixed),
        idle=idle,
        host=added(held.offloaded, {"process": ON_HOST}) if spread.on_gpu else {},
        away_host=held.resident if spread.on_gpu else {},
        loading=_loaded_whole(role) if spread.on_gpu else 0,
    )


def _moments(role: Learner, held: States, one: Pass, fixed: Parts) -> dict[str, Parts]:
    unpacked = role.spread.width * role.weights.unpacked
    deepest = activations.kept(one) + max(role.head, activations.momentary(one)) + unpacked
    last = activations.of_layer(one) + activations.momentary(one) + unpacked
    accumulated = held.accumulated if role.micro_batches > 1 else {}
    return {
        "forward": added(fixed, held.computing, accumulated, {"activations": deepest}),
        "backward": added(fixed, held.sending, held.backward, {"activations": last}),
        "optimizer step": added(fixed, held.step),
    }


def _mapped(role: Learner) -> int:
    """Of a model that was taken to 4 bits on a CPU, the pages of its file that were read and are still mapped, because
    embeddings and norms are used where they lie there. The kernel can take the others back."""
    if role.spread.on_gpu or not role.spread.packed or role.spread.stage == 3:
        return 0
    plain = role.spread.width * role.spread.frozen
    whole = role.file_bytes or role.spread.width * role.shapes.size(scores=False)
    return max(0, whole - plain)


def _process(on_gpu: bool) -> Parts:
    return {"CUDA context": CONTEXT} if on_gpu else {"process": TRAINER}


def _resting(held: States, role: Learner) -> Parts:
    """As `TrainingEngine.rest` leaves it: without running means, and with ZeRO without master weights."""
    away = ("optimizer", "master weights") if role.spread.zero else ("optimizer",)
    return {part: count for part, count in held.resident.items() if part not in away}


def _loaded_whole(role: Learner) -> int:
    """In host memory, before the model goes to its GPU: all of it, but for ZeRO-3."""
    return 0 if role.spread.stage == 3 else role.spread.width * role.weights.everything + role.weights.packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Answerer:
    """A frozen model on one rank: a reference or a reward model."""

    shapes: Architecture
    parameters: int
    width: int
    ranks: int
    split: bool
    """Whether ZeRO-3 splits it over the ranks."""
    offload_param: bool
    positions: int
    head: int
    on_gpu: bool


def answerer(role: Answerer) -> Usage:
    """Of a rank that only answers."""
    whole = role.width * role.parameters
    rests_at = whole // role.ranks if role.split else whole
    gathered = role.width * min(role.parameters, LIVE_PARAMETERS) if role.split else 0
    work = activations.forward_alone(role.shapes, role.positions, role.width) + role.head
    on_device = {"weights": 0 if role.split and role.offload_param else rests_at}
    computing = added(on_device, {"gathered weights": gathered, "activations": work}, _process(role.on_gpu))
    idle = {} if role.offload_param and role.on_gpu else {"weights": rests_at}
    offloaded = {"weights": rests_at} if role.offload_param else {}
    return Usage(
        moments={"forward": computing},
        idle=idle,
        host=added(offloaded, {"process": ON_HOST}) if role.on_gpu else {},
        away=idle if role.on_gpu else {},
        loading=0 if role.split or not role.on_gpu else whole,
    )
