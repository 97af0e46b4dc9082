"""Ways to make one tensor of several, for merging models and adapters."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Tensors = Sequence[torch.Tensor]
Combine = Callable[[Tensors, Sequence[float]], torch.Tensor]
"""One tensor of several in float32 and of one shape, each with its weight."""

AdapterMethod = Literal["linear", "ties", "dare_linear", "dare_ties"]
PARALLEL = 0.9995
"""Cosine from which on `slerp` is linear: the sine it divides by vanishes."""


def weighted_sum(tensors: Tensors, weights: Sequence[float]) -> torch.Tensor:
    """sum_i w_i x_i; of adapters' changes task arithmetic (Ilharco et al. 2023, arXiv 2212.04089)."""
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor, alpha=weight)
    return total


def weighted_mean(tensors: Tensors, weights: Sequence[float]) -> torch.Tensor:
    """sum_i w_i x_i / sum_i w_i: a model soup (Wortsman et al. 2022, arXiv 2203.05482)."""
    return weighted_sum(tensors, [weight / sum(weights) for weight in weights])


def slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """Spherical linear interpolation (Shoemake 1985, "Animating rotation with quaternion curves"), t from 0 to 1:

        slerp(a, b; t) = sin((1 - t) θ) / sin θ * a + sin(t θ) / sin θ * b,    cos θ = a·b / (|a| |b|)

    of the tensors as flat vectors. It keeps the length that a straight line between two directions loses: halfway
    between orthogonal unit vectors it has length 1, the line 0.71. The straight line where they are parallel, opposite,
    or one is zero.
    """
    lengths = (a.norm() * b.norm()).item()
    cosine = (a.flatten() @ b.flatten()).item() / lengths if lengths else 1.0
    if abs(cosine) > PARALLEL:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle) * a + math.sin(t * angle) / math.sin(angle) * b


@dataclass(frozen=True)
class Pruned:
    """PEFT's TIES (Yadav et al. 2023, arXiv 2306.01708) or DARE (Yu et al. 2024, arXiv 2311.03099) on whole changes of
    weights: what its `add_weighted_adapter` computes as `ties_svd` and so on before it takes the result apart again."""

    method: Literal["ties", "dare_linear", "dare_ties"]
    density: float
    """Share of each change that is kept: the largest values (TIES), or random ones, scaled up (DARE)."""

    def __call__(self, tensors: Tensors, weights: Sequence[float]) -> torch.Tensor:
        from peft.utils import merge_utils

        return getattr(merge_utils, self.method)(list(tensors), torch.tensor(weights), self.density)
