"""The reference: the frozen model that the policy is kept close to."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from rlpipe.data.flow import Shard
from rlpipe.models.load import load_causal_lm, resolve_dtype
from rlpipe.recipe.model import Dtype, Model
from rlpipe.training.distributed import Rank
from rlpipe.training.forward import shard_logprobs
from rlpipe.training.frozen import Frozen
from rlpipe.training.sharding import Sharding


@dataclass(frozen=True, slots=True)
class ReferenceSpec:
    """What a reference is made of."""

    model: Model
    path: str
    """The materialised model: a folder in Hugging Face format, or a hub id."""
    temperature: float
    """The rollout's, so that its log-probabilities compare with the policy's."""
    dtype: Dtype = "auto"
    sharding: Sharding = field(default_factory=Sharding)
    timeout_seconds: float = 600.0
    """How long a rank waits for the others, where the model is split over them."""


class Reference:
    """One rank of the reference. Every rank gets each call, with its own shard."""

    def __init__(self, spec: ReferenceSpec, rank: Rank) -> None:
        self._temperature = spec.temperature
        dtype = resolve_dtype(spec.dtype)
        load = partial(load_causal_lm, spec.model, spec.path, dtype)
        self._model = Frozen(load, dtype, spec.sharding, rank, spec.timeout_seconds)

    def logprobs(self, shard: Shard) -> np.ndarray:
        """Log-probabilities of the shard's response tokens; float32, one per token of the shard in the order of its
        micro-batches, 0 where masked. `microbatch.collect` undoes the sharding."""
        with self._model.answering() as model:
            return shard_logprobs(model, shard, self._model.device, self._temperature)
