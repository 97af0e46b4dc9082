"""The policy: the model that is trained."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlpipe.algorithms.aggregate import masked_sum
from rlpipe.algorithms.online import OnlineAlgorithm
from rlpipe.data.flow import Shard, Tokens
from rlpipe.models import adapters
from rlpipe.models.load import load_causal_lm, resolve_dtype
from rlpipe.recipe.adapter import Adapter
from rlpipe.recipe.model import Dtype, Model
from rlpipe.recipe.training import Optimizer
from rlpipe.runtime.handle import silent
from rlpipe.training import adapter_export, checkpoint
from rlpipe.training.direct import Sender
from rlpipe.training.distributed import Rank, join
from rlpipe.training.engine import TrainingEngine
from rlpipe.training.export import full_parameters, save_weights
from rlpipe.training.forward import response_logprobs, sequence_logprobs, shard_logprobs
from rlpipe.training.metrics import Mean, TokenSums
from rlpipe.training.padding import pad
from rlpipe.training.prepare import prepare
from rlpipe.training.sharding import Sharding, loaded, sizes
from rlpipe.weights.direct import Described, Part, Wire
from rlpipe.weights.packing import pack
from rlpipe.weights.payload import Exported, Payload

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """What a policy is made of; plain values and recipe sections, the same for every rank."""

    model: Model
    path: str
    """The materialised model: a folder in Hugging Face format, or a hub id."""
    algorithm: dict[str, Any]
    """Settings of the `OnlineAlgorithm`."""
    max_new_tokens: int
    """The rollout's; the length by which the aggregation `constant` divides."""
    temperature: float
    """The rollout's: log-probabilities are those of the tempered distribution that was sampled from."""
    total_steps: int
    """Optimizer steps of the whole run, for the learning-rate schedule."""
    adapter: Adapter | None = None
    """What is trained in place of the model's own weights."""
    merge_adapter: bool = False
    """Whether `export` hands over full weights with the adapter merged into them, and not the adapter."""
    lends_base: bool = False
    """Whether a critic of this process puts an adapter of its own on the same base model."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    dtype: Dtype = "auto"
    sharding: Sharding = field(default_factory=Sharding)
    gradient_checkpointing: bool = False
    seed: int = 0
    timeout_seconds: float = 600.0
    """How long a rank waits for the others, at the start and in each collective."""
    gives_way: bool = False
    """Whether an engine in another process uses the same GPU, in turns; it begins."""
    bucket_bytes: int = 256 << 20
    """Size of the buffers in which `export` hands weights over."""


class Policy:
    """One rank of the policy. Every rank gets each call, with its own shard; the calls are collective."""

    def __init__(self, spec: PolicySpec, rank: Rank) -> None:
        self._spec = spec
        self._rank = rank
        self._device = join(rank, spec.timeout_seconds)
        torch.manual_seed(spec.seed + rank.index)
        dtype = resolve_dtype(spec.dtype)
        model = loaded(partial(load_causal_lm, spec.model, spec.path, dtype), spec.sharding, dtype)
        self._base = adapters.same_weights(model) if spec.lends_base else None
        if spec.adapter is not None:
            model = adapters.adapt(model, spec.adapter, spec.seed)
        prepare(model, spec.gradient_checkpointing)
        self._engine = TrainingEngine(model, dtype, spec.sharding, spec.optimizer, spec.total_steps)
        self._exported = Exported("", 0)
        self._sender = Sender(rank)
        self._algorithm = OnlineAlgorithm(spec.algorithm, spec.max_new_tokens)
        if spec.gives_way:
            self.give_way()

    def sizes(self) -> tuple[int, int]:
        """How many parameters are trained, and how many there are."""
        return sizes(self._engine.model)

    def lent_base(self) -> "PreTrainedModel":
        """The base model without the adapter, for another role of this process: its weights are the policy's, frozen
        here as there. Raises ValueError unless `spec.lends_base`."""
        if self._base is None:
            raise ValueError("this policy keeps its base model to itself; build it with lends_base=True")
        return self._base

    def update(self, shard: Shard) -> dict[str, Mean]:
        """One optimizer step. The metrics are this rank's; `metrics.merge` puts those of all ranks together."""
        sums = TokenSums()
        last = len(shard.micro_batches) - 1
        for i, sequences in enumerate(shard.micro_batches):
            sums.add(self._micro_batch(shard, sequences, last=i == last))
        rate, grad_norm = self._engine.step()
        totals = sums.read()
        tokens, positions, loss = totals.pop("tokens"), totals.pop("positions"), totals.pop("loss")
        return {name: Mean(total, tokens) for name, total in totals.items()} | {
            "loss": Mean(loss, 1.0 / self._rank.world),  # added up over ranks, averaged over steps
            "learning_rate": Mean(rate, 1.0),
            "grad_norm": Mean(grad_norm, 1.0),
            "tokens": Mean(tokens, 1.0 / self._rank.world),
            "positions_used": Mean(float(shard.batch.lengths_B.sum()), positions),
        }

    def _micro_batch(self, shard: Shard, sequences: Sequence[int], last: bool) -> dict[str, torch.Tensor]:
        """Forward and backward; metrics as sums over response tokens."""
        padded = pad(shard.batch, sequences, self._device)
        logprobs_BT, entropy_BT = response_logprobs(
            self._engine.module, padded, self._spec.temperature, self._algorithm.entropy_coefficient != 0
        )
        loss, sums = self._algorithm.loss(
            logprobs_BT=logprobs_BT,
            behaviour_logprobs_BT=padded.behaviour_logprobs_BT,
            advantages_BT=padded.advantages_BT,
            mask_BT=padded.mask_BT,
            weights_BT=padded.weights_BT,
            kl_coefficient=shard.kl_coefficient,
            old_logprobs_BT=padded.old_logprobs_BT,
            reference_logprobs_BT=padded.reference_logprobs_BT,
            entropy_BT=entropy_BT,
        )
        self._engine.backward(loss, last)
        return sums | {
            "loss": loss.detach(),
            "entropy": masked_sum(entropy_BT.detach(), padded.mask_BT),
            "tokens": padded.mask_BT.sum(),
            "positions": torch.tensor(float(padded.mask_BT.numel()), device=self._device),
        }

    def logprobs(self, shard: Shard) -> np.ndarray:
        """Log-probabilities of the shard's response tokens under the weights as they are; float32, one per token of
        the shard in the order of its micro-batches, 0 where masked. `microbatch.collect` undoes the sharding."""
        return shard_logprobs(self._engine.module, shard, self._device, self._spec.temperature)

    def reference_logprobs(self, shard: Shard) -> np.ndarray:
        """As `logprobs`, of the base model: the adapter is off. The answer of a `Reference` without a second model."""
        with adapters.switched_off(self._engine.model):
            return self.logprobs(shard)

    def export(self) -> Payload | None:
        """What the engines are to serve, on rank 0; None on the others: all weights, or the adapter alone."""
        if self._spec.adapter is not None and not self._spec.merge_adapter:
            model = self._engine.model
            tensors, config = adapter_export.adapter_state(model).items(), adapters.config_of(model)
        else:
            tensors, config = self._full_parameters(), None
        if self._rank.index == 0:
            payload = pack(tensors, self._spec.bucket_bytes, config)
            self._exported = Exported(payload.digest, payload.nbytes)
            return payload
        for _ in tensors:
            pass
        return None

    def _full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights of a plain model, an adapter merged into them."""
        take = full_parameters if self._spec.adapter is None else adapter_export.merged_parameters
        return take(self._engine.model)

    def describe(self) -> Described:
        """What goes to engines from GPU to GPU; for a policy without an adapter. Every rank takes part."""
        described = self._sender.describe(self._engine.model)
        self._exported = Exported(described.digest, described.nbytes)
        return described

    def part(self, index: int, keep: bool) -> Part | None:
        """See `Sender.part`."""
        return self._sender.part(self._engine.model, index, keep)

    def open_wire(self, token: str) -> Wire:
        """See `Sender.open_wire`."""
        return self._sender.open_wire(token)

    def wire_token(self, engine: str) -> str | None:
        """See `Sender.token`."""
        return self._sender.token(engine)

    def join(self, engine: str, wire: Wire, workers: int) -> None:
        """See `Sender.join`."""
        self._sender.join(engine, wire, workers)

    def broadcast(self, engine: str) -> None:
        """See `Sender.broadcast`."""
        self._sender.broadcast(self._engine.model, engine)

    def on_gpu(self) -> bool:
        """Whether it trains on one."""
        return self._device.type == "cuda"

    def rest(self) -> None:
        """Make room on the GPU for another role's update, until the next of one's own. It still answers."""
        self._engine.rest()

    def give_way(self) -> None:
        """Leave the GPU to an engine on it, in another process, until the next call."""
        self._engine.give_way()

    def exported(self) -> Exported:
        """Of the last `export` of rank 0: what an engine's receipt must say, told on another way than the payload
        itself took."""
        return self._exported

    def probe(self, sequences: list[Tokens]) -> list[np.ndarray]:
        """Log-probabilities (temperature 1) of tokens 1.. of each sequence, as `rollout.Engine.probe`; the same on
        every rank."""
        return sequence_logprobs(self._engine.module, sequences, self._device)

    def save(self, directory: str) -> None:
        """A plain Hugging Face folder that transformers and vLLM load, an adapter merged; written by rank 0."""
        model = self._engine.model if self._spec.adapter is None else self._engine.model.get_base_model()
        writer = self._rank.index == 0
        save_weights(model, self._full_parameters(), self._spec.path, Path(directory), writer)

    def save_adapter(self, directory: str) -> None:
        """The adapter as a folder that PEFT loads onto the model at `spec.path`; written by rank 0."""
        adapter_export.save_adapter(self._engine.model, Path(directory), writer=self._rank.index == 0)

    def save_state(self, directory: str) -> None:
        """Everything needed to go on exactly from here: weights, optimizer, step count, random state."""
        self._engine.wake()
        checkpoint.save_state(self._engine.module, Path(directory), self._rank)

    @silent
    def load_state(self, directory: str) -> None:
        """Go on from what `save_state` wrote, with the same number of ranks and ZeRO stage."""
        self._engine.wake()
        checkpoint.load_state(self._engine.module, Path(directory), self._rank)
