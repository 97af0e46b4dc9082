"""`rlpipe` with an engine on another machine, imitated by a delay:  python -m step.distant SECONDS FILE run RECIPE ...

A token of all responses that run takes it SECONDS, in which it computes nothing here. Its responses are made of random
tokens; weights it takes, and proves, as the engine does in whose place it is. FILE: see `step.traced`.
"""

import sys
import time
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np

from rlpipe.data.flow import FinishReason, GroupRequest, Tokens, Trajectory, VersionSpan
from rlpipe.rollout.engine import Engine, EngineSpec, Health, Receipt
from rlpipe.rollout.records import Pulse, spans_of, trajectory
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.weights.payload import Payload
from step import traced

FIRST, LAST = 32, 127
"""Token ids that are written: bytes of plain text."""


class DistantEngine:
    """An `Engine` beside a real one, which takes weights and answers probes."""

    def __init__(self, near: Engine, seconds: float, most: int) -> None:
        """`most`: how many responses run at once, as `rollout.max_num_seqs`; the others wait."""
        self._near, self._seconds, self._most = near, seconds, most
        self._running: list[_Response] = []
        self._waiting: deque[_Response] = deque()
        self._pulse = Pulse(0)

    def submit(self, requests: list[GroupRequest]) -> None:
        for request in requests:
            self._waiting += [_Response(request, i) for i in range(len(request.seeds))]
            self._pulse.outstanding += len(request.seeds)

    def step(self) -> list[Trajectory]:
        while self._waiting and len(self._running) < self._most:
            self._running.append(self._waiting.popleft())
            self._running[-1].spans.append(VersionSpan(0, self._pulse.version))
        if self._running:
            time.sleep(self._seconds)
        for response in self._running:
            response.length += 1
        done = [response.trajectory() for response in self._running if response.done]
        self._running = [response for response in self._running if not response.done]
        self._pulse.beat(finished=len(done))
        return done

    def publish(self, version: int, payload: Payload) -> Receipt:
        receipt = self._near.publish(version, payload)
        self._pulse.version = version
        for response in self._running:
            response.spans.append(VersionSpan(response.length, version))
        return receipt

    def probe(self, sequences: list[Tokens]) -> list[np.ndarray]:
        return self._near.probe(sequences)

    def abort(self, group_ids: list[str]) -> None:
        self._running = [r for r in self._running if r.request.group_id not in group_ids]
        self._waiting = deque(r for r in self._waiting if r.request.group_id not in group_ids)
        self._pulse.outstanding = len(self._running) + len(self._waiting)

    def close(self) -> None:
        self._near.close()

    def health(self) -> Health:
        return self._pulse.health()


class _Response:
    def __init__(self, request: GroupRequest, sample: int) -> None:
        self.request, self.sample, self.length = request, sample, 0
        self.spans: list[VersionSpan] = []

    @property
    def done(self) -> bool:
        return self.length >= self.request.sampling.max_new_tokens

    def trajectory(self) -> Trajectory:
        random = np.random.default_rng(self.request.seeds[self.sample] % 2**63)
        tokens = random.integers(FIRST, LAST, self.length).astype(np.int32)
        logprobs = np.full(self.length, -np.log(LAST - FIRST), np.float32)
        spans = spans_of(self.spans, self.length)
        return trajectory(self.request, self.sample, tokens, logprobs, spans, FinishReason.LENGTH)


def _far(seconds: float) -> type[RolloutWorker]:
    """The role that hosts such an engine."""

    class Distant(RolloutWorker):
        def __init__(self, spec: EngineSpec) -> None:
            super().__init__(spec)
            self._engine = DistantEngine(self._engine, seconds, spec.max_num_seqs)

    return Distant


def main() -> None:
    seconds = float(sys.argv.pop(1))
    from rlpipe.runtime.ray_runtime import RayRuntime

    start = RayRuntime.start

    def start_far(self: RayRuntime, roles: list[Any]) -> Any:
        return start(self, [replace(s, role=_far(seconds)) if s.name == "engine" else s for s in roles])

    RayRuntime.start = start_far
    traced.main()


if __name__ == "__main__":
    main()
