"""What a rollout engine is. Implementations: `vllm_engine.VllmEngine`, `transformers_engine.TransformersEngine`."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from rlpipe.data.flow import GroupRequest, Tokens, Trajectory
from rlpipe.recipe.model import Dtype
from rlpipe.weights.direct import Arrived, Part, Transport, Wire
from rlpipe.weights.payload import Payload


def vllm_rank(rank: int) -> int:
    """The highest rank that vLLM is started for to serve adapters of `rank`: it takes 8, 16, 32, … and any below."""
    return 2 ** max(3, (rank - 1).bit_length())


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """How to start an engine, in plain values."""

    engine: Literal["vllm", "transformers"]
    model: str
    """Model folder or hub id, with weights to start from."""
    dtype: Dtype
    eos_token_ids: tuple[int, ...]
    """End every response, besides the request's own stop tokens."""
    version: int | None
    """Weight version that `model` holds. None, as for a restarted engine: it refuses requests until published to."""
    max_model_len: int | None = None
    """Longest prompt plus response in tokens; None is the model's own limit."""
    max_num_seqs: int = 256
    kv_cache_gib: float = 1.0
    """KV cache of a vLLM engine on CPU."""
    gpu_memory_utilization: float = 0.5
    """Share of its GPU that a vLLM engine takes."""
    tensor_parallel: int = 1
    """GPUs that a vLLM engine is split over."""
    transport: Transport | None = None
    """How weights come that do not come as a payload, to a vLLM engine on GPUs."""
    sleeps: bool = False
    """Whether it is put to sleep while others use its GPU."""
    seed: int = 0
    lora_rank: int | None = None
    """Serve adapters up to this rank on `model`'s weights; the engine then starts without a version."""
    adapter: str | None = None
    """Folder of an adapter that stays beside `model`'s weights as it is, which only the transformers engine serves."""
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """A sign of life, from another thread than the one that steps."""

    version: int | None
    outstanding: int
    """Responses submitted and not yet handed over."""
    seconds_since_step: float
    """Since the last step ended; grows while nothing is outstanding."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an engine answers to a publish."""

    version: int
    digest: str | None
    """`packing.digest_of` the received bytes; None for weights that went from GPU to GPU, which nobody reads for it."""
    seconds: float


class Engine(Protocol):
    """Single-threaded, except `health`. `step` never blocks for longer than one decode step."""

    def submit(self, requests: list[GroupRequest]) -> None:
        """Queue groups. Raises `NotCurrent` while no weight version is known, ValueError for what cannot be served."""

    def step(self) -> list[Trajectory]:
        """One decode step; the responses it finished. Empty at once when nothing runs."""

    def publish(self, version: int, payload: Payload | Arrived) -> Receipt:
        """Take new weights between two decode steps. Running requests go on and note the version boundary; nothing
        cached under the old weights is used again. One that sleeps wakes up. Raises `WeightsRejected` if the engine
        cannot take the payload."""

    def sleep(self) -> None:
        """Give back what it holds on its GPU. Until the next `publish` it is current with nothing, and `step` does
        nothing; running requests go on after that as after any publish."""

    def probe(self, sequences: list[Tokens]) -> list[np.ndarray]:
        """Log-probabilities (temperature 1) of tokens 1.. of each sequence, through the forward pass that serves
        requests; float32, length len(sequence) - 1. Raises `NotCurrent` as `submit` does."""

    def abort(self, group_ids: list[str]) -> None:
        """Forget these groups; nothing of them is handed over later."""

    def close(self) -> None:
        """Give back what the process could not start another engine without."""

    def health(self) -> Health: ...


class TakesFromGpus(Protocol):
    """What an engine can besides whose weights come from GPU to GPU (`EngineSpec.transport`)."""

    def join(self, wire: Wire) -> None:
        """Meet the policy for NCCL; waits for it."""

    def wire_token(self) -> str | None:
        """Of the wire it has joined."""

    def take(self, part: Part) -> None:
        """Take in some of the weights. What is generated before the `publish` that says that all have come is of no
        version."""
