"""`rlpipe merge`: one model of an adapter and its base, of several adapters, or of several models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from rlpipe.models.combine import Combine, Pruned, Tensors, slerp, weighted_mean, weighted_sum
from rlpipe.models.folders import is_adapter
from rlpipe.models.load import ModelError
from rlpipe.models.merge_adapters import merge_adapter, merge_adapters
from rlpipe.models.merge_models import merge_models
from rlpipe.models.trained_adapters import recorded_base
from rlpipe.pipelines.results import find, find_model, refuse_existing

Method = Literal["linear", "ties", "dare_linear", "dare_ties", "slerp"]


@dataclass(frozen=True)
class How:
    """How several are made one."""

    method: Method
    weights: Sequence[float]
    """One for each; empty for equal ones."""
    density: float
    t: float
    seed: int

    def combine_adapters(self, count: int) -> tuple[list[float], Combine]:
        """Weights, and the function of the changes. TIES divides by how many agree, and wants weights of 1."""
        if self.method == "slerp":
            raise ModelError(
                "--method slerp is for two whole models; adapters take linear, ties, dare_linear, dare_ties"
            )
        equal = 1.0 if self.method.endswith("ties") else 1.0 / count
        weights = list(self.weights) or [equal] * count
        return weights, weighted_sum if self.method == "linear" else Pruned(self.method, self.density)

    def combine_models(self, count: int) -> Callable[[Tensors], torch.Tensor]:
        if self.method == "slerp":
            if count != 2 or self.weights:
                raise ModelError(f"--method slerp goes from one model to a second by --t; given: {count} models")
            return lambda tensors: slerp(*tensors, self.t)
        if self.method != "linear":
            raise ModelError(f"--method {self.method} is for adapters; whole models take linear or slerp")
        weights = list(self.weights) or [1.0] * count
        if sum(weights) == 0:
            raise ModelError("--weights add up to 0; the weights of whole models are shares of the mean")
        return partial(weighted_mean, weights=weights)


def merge(sources: Sequence[str], out: Path, base: str | None, how: How, force: bool) -> None:
    """Write the merged model as a Hugging Face folder. Raises `ModelError` for what does not fit together."""
    folders = [find(source) for source in sources]
    if how.weights and len(how.weights) != len(folders):
        raise ModelError(f"--weights has {len(how.weights)} numbers for {len(folders)} sources; give one for each")
    refuse_existing(out, folders, force)
    kinds = {is_adapter(folder) for folder in folders}
    if len(kinds) > 1:
        raise ModelError("some of these are adapters and others whole models; merge the adapters into models first")
    if kinds == {True}:
        _adapters(folders, find_model(base or recorded_base(folders)), how, out)
    else:
        _models(folders, base, how, out)


def _adapters(folders: list[Path], base: Path, how: How, out: Path) -> None:
    weights, combine = how.combine_adapters(len(folders))
    if len(folders) == 1 and not how.weights and how.method == "linear":
        return merge_adapter(base, folders[0], out)
    merge_adapters(base, folders, weights, combine, how.seed, out)


def _models(folders: list[Path], base: str | None, how: How, out: Path) -> None:
    if base is not None:
        raise ModelError("--base is for adapters; whole models are merged without one")
    if len(folders) == 1:
        raise ModelError(f"{folders[0]} is one whole model; `rlpipe export` copies it, and merging takes several")
    merge_models(folders, how.combine_models(len(folders)), out)
