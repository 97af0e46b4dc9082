"""Training metrics that can be added up over micro-batches, ranks and optimizer steps."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from rlpipe.algorithms.explained_variance import explained_variance
from rlpipe.algorithms.mismatch import effective_sample_size


class Mean(NamedTuple):
    """A mean that is not divided yet: adding totals and weights of several ranks gives the mean over all of them."""

    total: float
    weight: float


def merge(parts: Iterable[dict[str, Mean]]) -> dict[str, float]:
    """The means over all parts (ranks, optimizer steps). The moments of the importance weight become
    `mismatch/effective_samples`, the effective sample size as a share of the tokens; those of the critic's error
    become `value/explained_variance`."""
    sums: dict[str, Mean] = {}
    for part in parts:
        for name, (total, weight) in part.items():
            before = sums.get(name, Mean(0.0, 0.0))
            sums[name] = Mean(before.total + total, before.weight + weight)
    means = {name: total / weight if weight else 0.0 for name, (total, weight) in sums.items()}
    if "mismatch/weight_sq" in means:
        squares = means.pop("mismatch/weight_sq")
        means["mismatch/effective_samples"] = effective_sample_size(means.pop("mismatch/weight"), squares)
    if "value/error_sq" in means:
        moments = [means.pop(f"value/{name}") for name in ("error", "error_sq", "return", "return_sq")]
        means["value/explained_variance"] = explained_variance(*moments)
    return means


class TokenSums:
    """Sums over response tokens, kept on the device until they are read once per optimizer step."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, sums: dict[str, torch.Tensor]) -> None:
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def read(self) -> dict[str, float]:
        """The one place where the host waits for the device."""
        values = torch.stack([value.float() for value in self._sums.values()]).tolist()
        return dict(zip(self._sums, values, strict=True))
