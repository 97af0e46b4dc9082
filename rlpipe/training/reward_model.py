"""The reward model: a frozen sequence classifier that says what whole sequences are worth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlpipe.data.flow import Tokens
from rlpipe.models.classifier import load_classifier
from rlpipe.models.load import resolve_dtype
from rlpipe.recipe.model import Dtype, PretrainedModel
from rlpipe.training.distributed import Rank, device_of
from rlpipe.training.microbatch import plan_micro_batches
from rlpipe.training.padding import pad_tokens


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


class RewardModel:
    """One replica of a reward model; replicas do not talk to each other."""

    def __init__(self, spec: RewardModelSpec, rank: Rank) -> None:
        self._budget = spec.tokens_per_batch
        self._device = device_of(rank)
        model = PretrainedModel(path=spec.path)
        classifier = load_classifier(model, spec.path, resolve_dtype(spec.dtype), spec.pad_token_id)
        self._model = classifier.eval().requires_grad_(False).to(self._device)
        self._padding = self._model.config.get_text_config().pad_token_id

    def score(self, sequences: list[Tokens]) -> list[float]:
        """The score of each whole sequence (prompt and response), whatever else is asked beside it."""
        lengths_B = np.array([len(tokens) for tokens in sequences], dtype=np.int64)
        [micro_batches] = plan_micro_batches(lengths_B, range(len(sequences)), 1, self._budget)
        scores_B = np.zeros(len(sequences))
        for ids in micro_batches:
            scores_B[list(ids)] = self._forward([sequences[i] for i in ids], lengths_B[list(ids)])
        return scores_B.tolist()

    @torch.no_grad()
    def _forward(self, sequences: Sequence[Tokens], lengths_B: np.ndarray) -> np.ndarray:
        ids_BT = pad_tokens(sequences, self._device, self._padding)
        lengths = torch.from_numpy(lengths_B).to(self._device)
        inside_BT = torch.arange(ids_BT.shape[1], device=self._device) < lengths[:, None]
        scores_B1 = self._model(input_ids=ids_BT, attention_mask=inside_BT.long(), use_cache=False).logits
        return scores_B1[:, 0].float().cpu().numpy()
