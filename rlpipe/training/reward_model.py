"""The reward model: a frozen sequence classifier that says what whole sequences are worth."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from rlpipe.data.flow import Tokens
from rlpipe.models.classifier import load_classifier
from rlpipe.models.load import resolve_dtype
from rlpipe.recipe.model import Dtype, PretrainedModel
from rlpipe.training.distributed import Rank
from rlpipe.training.frozen import Frozen
from rlpipe.training.microbatch import plan_micro_batches
from rlpipe.training.padding import pad_tokens
from rlpipe.training.sharding import Sharding


@dataclass(frozen=True, slots=True)
class RewardModelSpec:
    """What a reward model is made of."""

    path: str
    """A folder in Hugging Face format, or a hub id."""
    pad_token_id: int
    """Its tokenizer's; used where its configuration names none."""
    dtype: Dtype = "auto"
    tokens_per_batch: int = 16384
    """Token budget, after padding, of one forward pass."""
    sharding: Sharding = field(default_factory=Sharding)
    trust_remote_code: bool = False
    timeout_seconds: float = 600.0
    """How long a rank waits for the others, where the model is split over them."""


class RewardModel:
    """One rank of a reward model. Where each has the whole model, each is asked for itself; where it is split over the
    ranks, all are asked the same, and each answers for its share."""

    def __init__(self, spec: RewardModelSpec, rank: Rank) -> None:
        self._budget = spec.tokens_per_batch
        self._index, self._world = (rank.index, rank.world) if spec.sharding.zero_stage == 3 else (0, 1)
        model = PretrainedModel(path=spec.path, trust_remote_code=spec.trust_remote_code)
        dtype = resolve_dtype(spec.dtype)
        load = partial(load_classifier, model, spec.path, dtype, spec.pad_token_id)
        self._model = Frozen(load, dtype, spec.sharding, rank, spec.timeout_seconds)
        self._padding = self._model.config.get_text_config().pad_token_id

    def score(self, sequences: list[Tokens]) -> np.ndarray:
        """scores_B of whole sequences (prompt and response), whatever else is asked beside them; 0 for those that are
        another rank's share."""
        lengths_B = np.array([len(tokens) for tokens in sequences], dtype=np.int64)
        plan = plan_micro_batches(lengths_B, range(len(sequences)), self._world, self._budget)
        scores_B = np.zeros(len(sequences))
        with self._model.answering() as model:
            for ids in plan[self._index]:
                scores_B[list(ids)] = self._forward(model, [sequences[i] for i in ids], lengths_B[list(ids)])
        return scores_B

    @torch.no_grad()
    def _forward(self, model: torch.nn.Module, sequences: Sequence[Tokens], lengths_B: np.ndarray) -> np.ndarray:
        """Of a micro-batch without sequences too, so that an idle rank takes part."""
        ids_BT = pad_tokens(sequences, self._model.device, self._padding)
        lengths = torch.from_numpy(lengths_B).to(ids_BT.device)
        inside_BT = torch.zeros_like(ids_BT)
        inside_BT[: len(sequences)] = torch.arange(ids_BT.shape[1], device=ids_BT.device) < lengths[:, None]
        scores_B1 = model(input_ids=ids_BT, attention_mask=inside_BT, use_cache=False).logits
        return scores_B1[: len(sequences), 0].float().cpu().numpy()
