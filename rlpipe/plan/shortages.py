"""What does not fit."""

from collections.abc import Iterator
from dataclasses import dataclass

from rlpipe.plan.engines import Generator
from rlpipe.plan.hardware import GIB
from rlpipe.plan.placement import Placed, Spot, bytes_free, on_gpu, on_host
from rlpipe.plan.processes import CONTEXT
from rlpipe.plan.usage import total


@dataclass(frozen=True, slots=True)
class Shortage:
    """Something that there is not enough of."""

    where: str
    """For people: `node 0, GPU 3`, or a role."""
    message: str
    missing: int
    """Bytes; 0 where it is no memory that is missing."""


def of_places(placed: Placed) -> list[Shortage]:
    """Processes without a place, GPUs and nodes that hold less than is put on them."""
    found = list(_homeless(placed))
    for spot in placed.spots:
        found += [*_gpus(spot), *_host(spot)]
    return found


def _homeless(placed: Placed) -> Iterator[Shortage]:
    names = dict.fromkeys(seat.host.name for seat in placed.homeless)
    for name in names:
        seats = [seat for seat in placed.homeless if seat.host.name == name]
        host = seats[0].host
        if host.least is not None and host.count - len(seats) >= host.least:
            continue  # they come when there is room
        asked = f"{host.gpus:g} GPU{'s' * (host.gpus > 1)}" if host.gpus else f"{host.cpus:g} CPUs"
        free = f"{sum(sum(spot.free) for spot in placed.spots):g}" if host.gpus else "too few CPUs"
        yield Shortage(
            name,
            f"{len(seats)} of {host.count} processes of {name} have no place: each asks for {asked}"
            + (f" of one node, and {free} GPUs are free behind the others" if host.gpus else f", and {free} are free")
            + f" ({host.key or name}.resources)",
            0,
        )


def _gpus(spot: Spot) -> Iterator[Shortage]:
    for i, free in bytes_free(spot):
        if free < 0:
            parts = on_gpu(spot.gpus[i])
            yield Shortage(
                f"{spot.node.name}, GPU {i}",
                f"{spot.node.name}, GPU {i}: {gib(total(parts))} of {gib(spot.node.gpu_bytes)}, {gib(-free)} too much "
                f"({_greatest(parts)})",
                -free,
            )


def _host(spot: Spot) -> Iterator[Shortage]:
    if spot.node.host_bytes is None:
        return
    parts = on_host(spot)
    missing = total(parts) - spot.node.host_bytes
    if missing > 0:
        yield Shortage(
            spot.node.name,
            f"{spot.node.name}: {gib(total(parts))} of {gib(spot.node.host_bytes)} main memory, {gib(missing)} too "
            f"much ({_greatest(parts)})",
            missing,
        )


def _greatest(parts: dict[str, int]) -> str:
    """The two parts that take most."""
    named = sorted(parts.items(), key=lambda item: -item[1])[:2]
    return ", ".join(f"{name} {gib(count)}" for name, count in named)


def of_engine(made: Generator, longest: int) -> list[Shortage]:
    """vLLM starts only if its cache holds one sequence of `longest` tokens, the greatest length it is made for."""
    if not made.vllm:
        return []
    if made.cache <= 0:
        return [
            Shortage(
                "engine",
                f"an engine has {gib(int(made.utilization * made.gpu_bytes))} of each GPU "
                f"(rollout.gpu_memory_utilization={made.utilization:g}), and takes "
                f"{gib(made.weights + made.work + CONTEXT)} without any KV cache",
                -made.cache + made.token_bytes,
            )
        ]
    missing = longest * made.token_bytes // made.parts - made.cache
    if missing <= 0:
        return []
    fits = made.cache * made.parts // made.token_bytes
    return [
        Shortage(
            "engine",
            f"the KV cache of an engine holds {fits:,} tokens, and one sequence may have {longest:,}: vLLM would not "
            f"start; set rollout.max_model_len to {fits:,} or less",
            missing,
        )
    ]


def gib(count: float) -> str:
    """`12.3 GiB`."""
    return f"{count / GIB:.1f} GiB" if count >= 0.95 * GIB else f"{count / 2**20:.0f} MiB"
