"""How long new weights take to reach the engines, by the way they go. docs/memory.md has the formulas."""

from dataclasses import dataclass

from rlpipe.plan.hardware import Rates
from rlpipe.recipe.transport import Direct


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """One version, from the policy's ranks to every engine."""

    nbytes: int
    """What each engine gets: all weights, or an adapter."""
    way: Direct | None
    """From GPU to GPU; None over host memory."""
    engines: int
    ranks: int
    split: bool
    """Whether ZeRO-3 has the ranks gather it."""
    on_gpu: bool
    """Whether the policy is on GPUs."""


def publishing(sending: Sending, rates: Rates) -> float:
    """Seconds."""
    ways = {"nccl": _broadcast, "ipc": _beside, None: _over_host}
    return ways[sending.way](sending, rates)


def _broadcast(sending: Sending, rates: Rates) -> float:
    """NCCL: engines one after the other, as rank 0 has a group with each."""
    each = _gathering(sending, rates) + sending.nbytes / (rates.network * 1e9)
    return _described(sending, rates) + sending.engines * each


def _beside(sending: Sending, rates: Rates) -> float:
    """CUDA IPC: a rank copies into a buffer on its GPU, the engine there copies out of it: four times through memory.
    Engines do so side by side; where ZeRO-3 has all ranks gather for each, one after the other."""
    copies = 4 * sending.nbytes / (rates.bandwidth * 1e9)
    turns = sending.engines if sending.split else 1
    return _described(sending, rates) + turns * (_gathering(sending, rates) + copies)


def _over_host(sending: Sending, rates: Rates) -> float:
    """Packed into host memory by rank 0, fetched by each engine; from and to a GPU over its link to the host, of which
    each engine has its own."""
    links = 2 * sending.nbytes / (rates.host * 1e9) if sending.on_gpu else 0.0
    return _gathering(sending, rates) + links + sending.engines * sending.nbytes / (rates.network * 1e9)


def _described(sending: Sending, rates: Rates) -> float:
    """A checksum of each tensor where it lies, before any of it is sent."""
    return _gathering(sending, rates) + sending.nbytes / (rates.bandwidth * 1e9)


def _gathering(sending: Sending, rates: Rates) -> float:
    """What the other ranks hold travels to each of them."""
    if not sending.split:
        return 0.0
    return (sending.ranks - 1) / sending.ranks * sending.nbytes / (rates.network * 1e9)
