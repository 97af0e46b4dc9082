"""What processes reserve on a Ray cluster."""

import math
from collections.abc import Sequence

import ray

from rlpipe.recipe.training import Resources

Bundle = dict[str, float]

OWN_MACHINE = "rlpipe_own_machine"
"""Resource that marks a Ray which rlpipe started for the length of one run."""


def bundle(resources: Resources, gpus_wanted: int = 1) -> Bundle:
    """What one process asks for; `gpus_wanted` is what auto stands for on a cluster with GPUs."""
    return resources.bundle(bool(ray.cluster_resources().get("GPU")), gpus_wanted)


def fitted(bundles: Sequence[Bundle]) -> list[Bundle]:
    """The same with CPU shares that fit, on a Ray of the run's own.

    CPU reservations keep the runs of a cluster out of each other's way and spread roles over its nodes; they limit
    nothing. On a machine that has this run only they would just refuse a recipe with more roles than cores.
    """
    total, asked = ray.cluster_resources(), sum(bundle["CPU"] for bundle in bundles)
    if OWN_MACHINE not in total or asked <= total["CPU"]:
        return list(bundles)
    return [bundle | {"CPU": _allowed(bundle["CPU"] * total["CPU"] / asked)} for bundle in bundles]


def added(bundles: Sequence[Bundle]) -> Bundle:
    """What several processes take of one bundle."""
    keys = dict.fromkeys(key for bundle in bundles for key in bundle)
    return {key: _exact(sum(bundle.get(key, 0.0) for bundle in bundles)) for key in keys}


def _exact(amount: float) -> float:
    """Without what adding floats leaves beyond the four digits that Ray knows."""
    return round(amount, 4)


def _allowed(cpus: float) -> float:
    """Rounded down to what Ray takes: whole CPUs, or a fraction of one in at most four digits."""
    return float(math.floor(cpus)) if cpus >= 1 else math.floor(cpus * 1e4) / 1e4


def shown(resources: dict[str, float]) -> str:
    """`CPU 8, GPU 1`."""
    return ", ".join(f"{key} {resources.get(key, 0):g}" for key in ("CPU", "GPU"))
