"""Policy weights on their way from GPU to GPU: what is said about them. They themselves never pass through here."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Transport = Literal["nccl", "ipc"]
"""`nccl`: broadcast to GPUs of other processes, on any node. `ipc`: read in place by a process on the same GPU."""


BUCKET_BYTES = 256 << 20
"""Of the buffers in which weights travel; one tensor that is larger has a buffer of its size."""
BUFFERS = 2
"""Of a broadcast: one is filled while the other one is on its way. Both sides have to know."""


class Shape(NamedTuple):
    """A tensor to come, by its Hugging Face name."""

    name: str
    dtype: str
    """torch dtype name, for example `bfloat16`."""
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Described:
    """All weights of one version, before they are sent."""

    tensors: tuple[Shape, ...]
    digest: str
    """Of names, shapes and a checksum of each tensor's bits, taken where it lies."""

    @property
    def nbytes(self) -> int:
        """What each engine gets."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class Wire:
    """Where a policy and one engine meet for NCCL."""

    address: str
    port: int
    token: str
    """Two processes that both know it have met."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the weights, for an engine to take in."""

    tensors: tuple[Shape, ...]
    handles: dict[str, tuple[Any, ...]] | None = None
    """By the UUID of each GPU, how another process on it opens the buffer in which the tensors lie end to end (the
    arguments of torch's `rebuild_cuda_tensor`); None where they come by NCCL."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """In place of a payload: its weights have been taken in, part by part."""


def split(tensors: tuple[Shape, ...], buffer_bytes: int) -> list[tuple[Shape, ...]]:
    """Consecutive groups that fit into a buffer of that size; a larger tensor is one of its own."""
    groups: list[list[Shape]] = []
    room = 0
    for tensor in tensors:
        if not groups or tensor.nbytes > room:
            groups.append([])
            room = buffer_bytes
        groups[-1].append(tensor)
        room -= tensor.nbytes
    return [tuple(group) for group in groups]
