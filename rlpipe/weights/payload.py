"""Policy weights on their way to the engines: a few large buffers and an index, not one message per parameter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np


class WeightsRejected(RuntimeError):
    """An engine cannot take a payload; the message says why and what to change."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: bytes [offset, offset + nbytes) of bucket `bucket`."""

    name: str
    dtype: str
    """torch dtype name, for example `float32` or `bfloat16`."""
    shape: tuple[int, ...]
    bucket: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Payload:
    """Hugging Face parameter names and their bytes. Made by `packing.pack`, read by `packing.unpack`.

    kind `full` carries every parameter (tied ones once); `adapter` carries a PEFT adapter's tensors and its config.
    """

    kind: Literal["full", "adapter"]
    index: tuple[TensorEntry, ...]
    buckets: tuple[np.ndarray, ...]
    """uint8 arrays; in an object store they are read in place, without a copy."""
    digest: str
    """`packing.digest_of(buckets)`, computed by the publisher."""
    adapter_config: dict[str, Any] | None = None
    """The adapter's `adapter_config.json`; None for kind `full`."""

    @property
    def nbytes(self) -> int:
        """What each engine gets."""
        return sum(bucket.nbytes for bucket in self.buckets)


class Exported(NamedTuple):
    """What was handed over, without the weights."""

    digest: str
    nbytes: int


def check_fits(payload: Payload, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `WeightsRejected` unless `payload` carries exactly the parameters of `shapes`."""
    names = {entry.name: entry.shape for entry in payload.index}
    wrong = {name for name, shape in names.items() if shapes.get(name) != shape}
    missing = shapes.keys() - names.keys()
    if payload.kind != "full" or wrong or missing:
        raise WeightsRejected(
            f"a payload of kind {payload.kind} does not fit the engine's model: missing {_some(missing)}; unknown or "
            f"of another shape {_some(wrong)}. Trainer and engine must load the same model."
        )


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"
