"""Named tensors to a payload and back."""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import xxhash

from rlpipe.weights.payload import Payload, TensorEntry

ALIGNMENT = 64
"""Bytes; the widest vector load, so that a tensor can be computed on where it lies."""


def pack(
    tensors: Iterable[tuple[str, torch.Tensor]],
    bucket_bytes: int = 256 << 20,
    adapter_config: dict[str, Any] | None = None,
) -> Payload:
    """Copy named tensors into buckets of about `bucket_bytes`; with `adapter_config`, into an adapter payload.

    Each tensor is copied before the next one is asked for, so a generator may gather and release parameters one by
    one. `module.named_parameters()` yields tied parameters once, as a payload wants them. Raises ValueError on a name
    that comes twice.
    """
    writer = _Writer(bucket_bytes)
    for name, tensor in tensors:
        writer.add(name, tensor)
    buckets = writer.close()
    kind = "full" if adapter_config is None else "adapter"
    return Payload(kind, tuple(writer.index.values()), buckets, digest_of(buckets), adapter_config)


def unpack(payload: Payload) -> Iterator[tuple[str, torch.Tensor]]:
    """The payload's tensors in order, as views of its buckets: to be read, never written."""
    for number, bucket in enumerate(payload.buckets):
        yield from tensors_of([entry for entry in payload.index if entry.bucket == number], bucket)


def tensors_of(entries: Iterable[TensorEntry], bucket: np.ndarray) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that lie in one bucket, as `unpack`."""
    for entry in entries:
        raw = bucket[entry.offset : entry.offset + entry.nbytes]
        yield entry.name, _readable(raw).view(getattr(torch, entry.dtype)).view(entry.shape)


def digest_of(buckets: Iterable[np.ndarray]) -> str:
    """XXH3-128 of the buckets' bytes, in order: at the speed of memory, against accidents and not against forgers."""
    digest = xxhash.xxh3_128()
    for bucket in buckets:
        digest.update(bucket)
    return digest.hexdigest()


def _readable(raw: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # Arrays from an object store are read-only, which torch cannot express; nobody writes to these tensors.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(raw)


class _Writer:
    """Fills one bucket after the other."""

    def __init__(self, bucket_bytes: int) -> None:
        self.index: dict[str, TensorEntry] = {}
        self._bucket_bytes = bucket_bytes
        self._closed: list[np.ndarray] = []
        self._open = np.empty(0, np.uint8)
        self._used = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if name in self.index:
            raise ValueError(f"weights: {name} comes twice; give every parameter once (module.named_parameters())")
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        start = self._reserve(raw.numel())
        # numpy copies without torch's thread pool, which costs more than it gives on tensors of this size.
        self._open[start : self._used] = raw.cpu().numpy()
        dtype = str(tensor.dtype).removeprefix("torch.")
        place = (len(self._closed), start, raw.numel())
        self.index[name] = TensorEntry(name, dtype, tuple(tensor.shape), *place)

    def close(self) -> tuple[np.ndarray, ...]:
        if self._used:
            # The unused end was never touched, so it takes no memory; the view keeps it from being sent.
            self._closed.append(self._open[: self._used])
        return tuple(self._closed)

    def _reserve(self, size: int) -> int:
        """Start of `size` fresh bytes in the open bucket."""
        start = -(-self._used // ALIGNMENT) * ALIGNMENT
        if start + size > self._open.nbytes:
            self.close()
            self._open, self._used, start = np.empty(max(size, self._bucket_bytes), np.uint8), 0, 0
        self._open[self._used : start] = 0  # padding is hashed too
        self._used = start + size
        return start
