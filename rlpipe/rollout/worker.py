"""The role that hosts one rollout engine."""

import time
from dataclasses import dataclass

import numpy as np

from rlpipe.data.flow import GroupRequest, Tokens, Trajectory
from rlpipe.rollout.engine import Engine, EngineSpec, Health, Receipt
from rlpipe.weights.direct import Arrived, Part, Wire
from rlpipe.weights.payload import Payload


@dataclass(frozen=True, slots=True)
class Slice:
    """What an engine did in one `advance`."""

    finished: list[Trajectory]
    steps: int
    """Decode steps that it took."""
    seconds: float
    """How long these took."""


class RolloutWorker:
    """An engine and the loop that steps it. `health` may be called from any thread, everything else from one."""

    def __init__(self, spec: EngineSpec) -> None:
        self._engine = _start(spec)

    def submit(self, requests: list[GroupRequest]) -> None:
        """Raises `NotCurrent` before the engine has a weight version, ValueError for a request it cannot serve."""
        self._engine.submit(requests)

    def advance(self, seconds: float) -> Slice:
        """Generate for up to `seconds`; what was finished by then. Returns sooner when nothing is outstanding."""
        began = time.monotonic()
        finished: list[Trajectory] = []
        steps = 0
        while self._engine.health().outstanding:
            finished += self._engine.step()
            steps += 1
            if time.monotonic() >= began + seconds:
                break
        return Slice(finished, steps, time.monotonic() - began)

    def publish(self, version: int, payload: Payload | Arrived) -> Receipt:
        """Serve these weights from the next step on. Raises `WeightsRejected`."""
        return self._engine.publish(version, payload)

    def join(self, wire: Wire) -> None:
        """See `TakesFromGpus.join`."""
        self._engine.join(wire)

    def wire_token(self) -> str | None:
        """See `TakesFromGpus.wire_token`."""
        return self._engine.wire_token()

    def take(self, part: Part) -> None:
        """See `TakesFromGpus.take`."""
        self._engine.take(part)

    def sleep(self) -> None:
        """See `Engine.sleep`."""
        self._engine.sleep()

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
    if spec.engine == "transformers":
        from rlpipe.rollout.transformers_engine import TransformersEngine

        return TransformersEngine(spec)
    from rlpipe.rollout.vllm_engine import VllmEngine

    return VllmEngine(spec)
