"""The role that hosts one rollout engine."""

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rlpipe.data.flow import GroupRequest, Tokens, Trajectory
from rlpipe.models.load import resolve_dtype
from rlpipe.recipe.model import Dtype
from rlpipe.rollout.engine import Engine, Health, Receipt
from rlpipe.weights.payload import Payload


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
    seed: int = 0
    lora_rank: int | None = None
    """Serve adapters up to this rank on `model`'s weights (vLLM only); the engine then starts without a version."""
    revision: str | None = None
    trust_remote_code: bool = False


class RolloutWorker:
    """An engine and the loop that steps it. `health` may be called from any thread, everything else from one."""

    def __init__(self, spec: EngineSpec) -> None:
        self._engine = _start(spec)

    def submit(self, requests: list[GroupRequest]) -> None:
        """Raises `NotCurrent` before the engine has a weight version, ValueError for a request it cannot serve."""
        self._engine.submit(requests)

    def advance(self, seconds: float) -> list[Trajectory]:
        """Generate for up to `seconds`; what was finished by then. Returns sooner when nothing is outstanding."""
        until = time.monotonic() + seconds
        finished: list[Trajectory] = []
        while self._engine.health().outstanding:
            finished += self._engine.step()
            if time.monotonic() >= until:
                break
        return finished

    def publish(self, version: int, payload: Payload) -> Receipt:
        """Serve these weights from the next step on. Raises `WeightsRejected`."""
        return self._engine.publish(version, payload)

    def probe(self, sequences: list[Tokens]) -> list[np.ndarray]:
        """See `Engine.probe`."""
        return self._engine.probe(sequences)

    def abort(self, group_ids: list[str]) -> None:
        """Forget these groups."""
        self._engine.abort(group_ids)

    def close(self) -> None:
        """End the engine, where its process lives on."""
        self._engine.close()

    def health(self) -> Health:
        """Whether and how long ago the engine stepped."""
        return self._engine.health()


def _start(spec: EngineSpec) -> Engine:
    """Engines are imported here, so that a process loads only the one it hosts."""
    common = {
        "dtype": str(resolve_dtype(spec.dtype)).removeprefix("torch."),
        "version": spec.version,
        "eos_token_ids": spec.eos_token_ids,
        "max_model_len": spec.max_model_len,
        "max_num_seqs": spec.max_num_seqs,
        "revision": spec.revision,
        "trust_remote_code": spec.trust_remote_code,
    }
    if spec.engine == "transformers":
        from rlpipe.rollout.transformers_engine import TransformersEngine

        return TransformersEngine(spec.model, **common)
    from rlpipe.rollout.vllm_engine import VllmEngine

    return VllmEngine(
        spec.model,
        kv_cache_gib=spec.kv_cache_gib,
        gpu_memory_utilization=spec.gpu_memory_utilization,
        seed=spec.seed,
        lora_rank=spec.lora_rank,
        **common,
    )
