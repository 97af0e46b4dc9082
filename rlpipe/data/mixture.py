"""Several lists of examples as one, by weights."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def mixed(parts: Sequence[Sequence[T]], weights: Sequence[float], most: int | None, seed: int) -> list[T]:
    """A shuffled list in which each part has its share by weight.

    It is as long as lets every part be in it whole, parts that are too small for their share being repeated, but no
    longer than `most`. Shares are kept to one item.
    """
    shares = np.array(weights) / np.sum(weights)
    total = max(len(part) / share for part, share in zip(parts, shares, strict=True))
    counts = np.rint(shares * (total if most is None else min(total, most))).astype(int)
    rng = np.random.default_rng(seed)
    drawn = [part[i] for part, n in zip(parts, counts, strict=True) for i in _cycle(len(part), n, rng)]
    return [drawn[i] for i in rng.permutation(len(drawn))]


def _cycle(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` indices below `size`, in an order of their own, each as often as any other or once more."""
    return np.resize(rng.permutation(size), count)
