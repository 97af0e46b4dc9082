"""Online algorithms for tests: a preset with changes, as a recipe would make it."""

import numpy as np
import torch

from rlpipe.algorithms.online import OnlineAlgorithm
from rlpipe.recipe.algorithm import PRESETS

MAX_NEW_TOKENS = 10


def settings(name="grpo", **changes):
    """What `pipelines.roles` hands to the algorithm: plain values."""
    preset = PRESETS[name](name=name, **changes)
    return preset.model_dump(exclude={"name", "group_size", "dynamic_sampling"})


def algorithm(name="grpo", **changes):
    return OnlineAlgorithm(settings(name, **changes), MAX_NEW_TOKENS)


def weights_of(algorithm, mask_BT):
    """The weights of a padded batch that is one optimizer step."""
    sequence_of_BT = torch.arange(len(mask_BT))[:, None].expand_as(mask_BT)
    return algorithm.weights(mask_BT.flatten(), sequence_of_BT.flatten()).view_as(mask_BT)


def weights_of_flat(algorithm, batch):
    """The weights of a `TokenBatch` that is one optimizer step."""
    sequence_of_N = np.repeat(np.arange(len(batch.lengths_B)), batch.lengths_B)
    return algorithm.weights(torch.from_numpy(batch.mask_N), torch.from_numpy(sequence_of_N)).numpy()
