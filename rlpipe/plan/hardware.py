"""The machines a plan is made for, and how fast they are taken to be."""

import re
from dataclasses import dataclass

GIB = 2**30
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(T|G|M)(?:i?B)?$", re.IGNORECASE)
_UNITS = {"T": 2**40, "G": 2**30, "M": 2**20}


class HardwareError(ValueError):
    """Hardware that was described so that nobody can tell what it is; the message says how to write it."""


@dataclass(frozen=True, slots=True)
class Node:
    """One machine."""

    name: str
    gpus: int
    gpu_bytes: int
    """Memory of each GPU; 0 where there is none."""
    host_bytes: int | None
    """Main memory; None where it was not said, and nothing is checked against it."""
    cpus: float | None = None
    """What Ray may reserve; None where it was not said."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What the estimate of time rests on, of one GPU, or of one process without."""

    tflops: float
    """10^12 operations a second at best, in the type that computes."""
    utilization: float
    """Share of them that training reaches."""
    bandwidth: float
    """GB/s between the processor and its memory, which decoding waits for."""
    network: float
    """GB/s between two processes, for gradients and for published weights."""
    host: float
    """GB/s between a GPU and its host's memory, for what is published over that."""


def rates(on_gpu: bool) -> Rates:
    """Those of an A100 on PCIe 4.0 x 16, or of one core with AVX2, which is beside its memory."""
    return Rates(312.0, 0.4, 2039.0, 25.0, 25.0) if on_gpu else Rates(0.05, 0.6, 10.0, 1.0, 10.0)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Machines, in the order in which they are filled."""

    nodes: tuple[Node, ...]
    named: str
    """For people: `4 nodes of 8 x 80 GiB`."""

    @property
    def on_gpu(self) -> bool:
        """Whether processes that say nothing of GPUs get one, as Ray's resources then hold some."""
        return any(node.gpus for node in self.nodes)


def amount(text: str) -> int:
    """Bytes of `80GB`. Makers of GPUs count GiB and write GB, and so does this."""
    found = _AMOUNT.match(text.strip())
    if found is None or not float(found[1]):
        raise HardwareError(f"`{text}` is no amount of memory; write 80GB, 512GB or 1.5TB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def cluster(gpus: str, nodes: int, host_memory: str | None) -> Cluster:
    """`nodes` machines with the GPUs of `8x80GB` each, or with none (`0`)."""
    count, each = _gpus(gpus)
    host = amount(host_memory) if host_memory else None
    named = f"{count} x {each / GIB:g} GiB GPU" if count else "no GPU"
    machines = tuple(Node(f"node {i}", count, each, host) for i in range(nodes))
    return Cluster(machines, f"{nodes} node{'s' * (nodes > 1)} with {named}{' each' * (nodes > 1)}")


def _gpus(text: str) -> tuple[int, int]:
    if text.strip() == "0":
        return 0, 0
    count, _, each = text.lower().partition("x")
    if not count.strip().isdigit() or int(count) < 1:
        raise HardwareError(f"--gpus {text}: write how many GPUs a node has and their memory, as 8x80GB, or 0")
    return int(count), amount(each)
