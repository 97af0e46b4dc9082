"""The critic: a value function that learns to foresee the returns of the policy's responses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from rlpipe.algorithms.aggregate import masked_sum
from rlpipe.algorithms.explained_variance import value_sums
from rlpipe.algorithms.value_loss import value_loss
from rlpipe.data.flow import Shard
from rlpipe.models import adapters
from rlpipe.models.classifier import load_classifier
from rlpipe.models.load import resolve_dtype
from rlpipe.models.quantized import backbone_of
from rlpipe.models.values import ValueModel
from rlpipe.recipe.adapter import PeftAdapter
from rlpipe.recipe.model import Dtype, Model
from rlpipe.recipe.training import Optimizer
from rlpipe.runtime.handle import silent
from rlpipe.training import checkpoint
from rlpipe.training.distributed import Rank, join
from rlpipe.training.engine import TrainingEngine
from rlpipe.training.metrics import Mean, TokenSums
from rlpipe.training.padding import Padded, flatten, pad
from rlpipe.training.policy import Policy
from rlpipe.training.prepare import prepare
from rlpipe.training.sharding import Sharding, loaded, sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Parts = tuple["PreTrainedModel", torch.nn.Module]
"""Backbone and value head."""


@dataclass(frozen=True, slots=True)
class CriticSpec:
    """What a critic is made of; plain values and recipe sections, the same for every rank. On a base model that a
    policy lends, `model` and `path` are the policy's."""

    model: Model
    path: str
    """A reward model, whose score head becomes the value head, or a causal language model, which gets a new one that
    says 0: a folder in Hugging Face format, or a hub id."""
    total_steps: int
    """Optimizer steps of the whole run, for the learning-rate schedule."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    dtype: Dtype = "auto"
    sharding: Sharding = field(default_factory=Sharding)
    gradient_checkpointing: bool = False
    adapter: PeftAdapter | None = None
    """What is trained in place of the model's own weights, beside the value head."""
    value_clip: float | None = None
    """How far an update may carry a value from `values_N`, in reward units; None leaves it free."""
    gives_way: bool = False
    """As the policy's."""
    seed: int = 0
    timeout_seconds: float = 600.0
    """How long a rank waits for the others, at the start and in each collective."""


class Critic:
    """One rank of the critic. Every rank gets each call, with its own shard; the calls are collective."""

    def __init__(self, spec: CriticSpec, rank: Rank, policy: Policy | None = None) -> None:
        """With a `policy` of the same process, on whose base model it puts its adapter, nothing is loaded."""
        self._spec = spec
        self._rank = rank
        self._device = join(rank, spec.timeout_seconds)
        torch.manual_seed(spec.seed + rank.index)
        dtype = resolve_dtype(spec.dtype)
        backbone, score = _own(spec, dtype) if policy is None else _on(policy.lent_base(), dtype)
        if spec.adapter is not None:
            backbone = adapters.adapt(backbone, spec.adapter, spec.seed, "FEATURE_EXTRACTION")
        prepare(backbone, spec.gradient_checkpointing)
        model = ValueModel(backbone, score)
        self._engine = TrainingEngine(model, dtype, spec.sharding, spec.optimizer, spec.total_steps)
        if spec.gives_way:
            self.give_way()

    def sizes(self) -> tuple[int, int]:
        """How many parameters are trained, and how many there are; those that a policy lends count, too."""
        return sizes(self._engine.model)

    @torch.no_grad()
    def values(self, shard: Shard) -> np.ndarray:
        """The value of the state in which each response token of the shard was chosen, in reward units; float32, one
        per token in the order of its micro-batches, 0 where masked. `microbatch.collect` undoes the sharding."""
        parts = []
        for sequences in shard.micro_batches:
            values_BT = self._forward(pad(shard.batch, sequences, self._device))
            parts.append(flatten(values_BT, shard.batch.lengths_B[list(sequences)]))
        return np.concatenate([*parts, np.zeros(0, dtype=np.float32)])

    def update(self, shard: Shard) -> dict[str, Mean]:
        """One optimizer step towards `returns_N`. The metrics are this rank's; `metrics.merge` puts those of all ranks
        together, and makes `value/explained_variance` of the sums."""
        if shard.batch.returns_N is None or shard.batch.weights_N is None:
            raise ValueError("the critic needs `returns_N` and `weights_N`; fill them before sharding the batch")
        sums = TokenSums()
        last = len(shard.micro_batches) - 1
        for i, sequences in enumerate(shard.micro_batches):
            sums.add(self._micro_batch(shard, sequences, last=i == last))
        rate, grad_norm = self._engine.step()
        totals = sums.read()
        tokens = totals.pop("tokens")
        return {name: Mean(total, tokens) for name, total in totals.items()} | {
            "critic/learning_rate": Mean(rate, 1.0),
            "critic/grad_norm": Mean(grad_norm, 1.0),
        }

    def _micro_batch(self, shard: Shard, sequences: Sequence[int], last: bool) -> dict[str, torch.Tensor]:
        """Forward and backward; metrics as sums over response tokens."""
        padded = pad(shard.batch, sequences, self._device)
        values_BT, mask_BT = self._forward(padded), padded.mask_BT
        old_values_BT = values_BT.detach() if padded.values_BT is None else padded.values_BT
        loss_BT, clipped_BT = value_loss(values_BT, old_values_BT, padded.returns_BT, self._spec.value_clip)
        self._engine.backward(masked_sum(loss_BT, padded.weights_BT), last)
        return value_sums(values_BT, padded.returns_BT, mask_BT) | {
            "value/loss": masked_sum(loss_BT.detach(), mask_BT),
            "value/clip_fraction": masked_sum(clipped_BT, mask_BT),
            "tokens": mask_BT.sum(),
        }

    def _forward(self, padded: Padded) -> torch.Tensor:
        """values_BT, 0 where masked; of a micro-batch without sequences too, so that an idle rank takes part."""
        values_BT = self._engine.module(padded.input_ids_BT)
        return torch.where(padded.mask_BT > 0, values_BT, torch.zeros_like(values_BT))

    def rest(self) -> None:
        """Make room on the GPU for another role's update, until the next of one's own. It still answers."""
        self._engine.rest()

    def give_way(self) -> None:
        """Leave the GPU to an engine on it, in another process, until the next call."""
        self._engine.give_way()

    def save_state(self, directory: str) -> None:
        """Everything needed to go on exactly from here: weights, optimizer, step count, random state."""
        self._engine.wake()
        checkpoint.save_state(self._engine.module, Path(directory), self._rank)

    @silent
    def load_state(self, directory: str) -> None:
        """Go on from what `save_state` wrote, with the same number of ranks and ZeRO stage."""
        self._engine.wake()
        checkpoint.load_state(self._engine.module, Path(directory), self._rank)


def _own(spec: CriticSpec, dtype: torch.dtype) -> Parts:
    """Of the model in the specification."""
    load = partial(load_classifier, spec.model, spec.path, dtype, head_seed=spec.seed, head_scale=0.0)
    classifier = loaded(load, spec.sharding, dtype)
    return backbone_of(classifier), classifier.score


def _on(base: "PreTrainedModel", dtype: torch.dtype) -> Parts:
    """Of a language model that is there already, with a new head that says 0."""
    backbone = backbone_of(base)
    score = torch.nn.Linear(backbone.config.get_text_config().hidden_size, 1, bias=False, dtype=dtype)
    torch.nn.init.zeros_(score.weight)
    return backbone, score
