"""The reference: the frozen model that the policy is kept close to."""

from dataclasses import dataclass

import numpy as np

from rlpipe.data.flow import Shard
from rlpipe.models.load import load_causal_lm, resolve_dtype
from rlpipe.recipe.model import Dtype, Model
from rlpipe.training.distributed import Rank, device_of
from rlpipe.training.forward import shard_logprobs


@dataclass(frozen=True, slots=True)
class ReferenceSpec:
    """What a reference is made of."""

    model: Model
    path: str
    """The materialised model: a folder in Hugging Face format, or a hub id."""
    temperature: float
    """The rollout's, so that its log-probabilities compare with the policy's."""
    dtype: Dtype = "auto"


class Reference:
    """One replica of the reference; replicas do not talk to each other."""

    def __init__(self, spec: ReferenceSpec, rank: Rank) -> None:
        self._temperature = spec.temperature
        self._device = device_of(rank)
        model = load_causal_lm(spec.model, spec.path, resolve_dtype(spec.dtype))
        self._model = model.eval().requires_grad_(False).to(self._device)

    def logprobs(self, shard: Shard) -> np.ndarray:
        """Log-probabilities of the shard's response tokens; float32, one per token of the shard in the order of its
        micro-batches, 0 where masked. `microbatch.collect` undoes the sharding."""
        return shard_logprobs(self._model, shard, self._device, self._temperature)
