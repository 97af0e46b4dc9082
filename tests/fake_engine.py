"""An engine without a model, for tests of what controls engines."""

from collections.abc import Callable

import numpy as np

from rlpipe.data.flow import FinishReason, GroupRequest, Trajectory, VersionSpan
from rlpipe.recipe.run import Deadlines
from rlpipe.rollout.engine import Health
from rlpipe.rollout.pool import EnginePool
from rlpipe.rollout.records import trajectory
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.local import LocalHandle

Says = Callable[[GroupRequest, int], list[int]]
"""The tokens that answer sample `i` of a request; a response that does not end with one of its stop tokens was cut."""


class FakeEngine:
    """Says what `says` tells it to, a few responses at each step; token t has log-probability -(t + 1) / 8."""

    def __init__(self, says: Says, stops: set[int], per_step: int = 1000) -> None:
        self.version = 0
        self.requests: list[GroupRequest] = []
        self._says, self._stops, self._per_step = says, stops, per_step
        self._waiting: list[tuple[GroupRequest, int]] = []

    def submit(self, requests: list[GroupRequest]) -> None:
        self.requests += requests
        self._waiting += [(request, sample) for request in requests for sample in range(len(request.seeds))]

    def step(self) -> list[Trajectory]:
        now, self._waiting = self._waiting[: self._per_step], self._waiting[self._per_step :]
        return [self._answer(request, sample) for request, sample in now]

    def health(self) -> Health:
        return Health(self.version, len(self._waiting), 0.0)

    def _answer(self, request: GroupRequest, sample: int) -> Trajectory:
        tokens = np.array(self._says(request, sample)[: request.sampling.max_new_tokens], np.int32)
        logprobs = np.arange(1, len(tokens) + 1, dtype=np.float32) / -8
        stopped = tokens[-1] in self._stops | set(request.sampling.stop_token_ids)
        reason = FinishReason.STOP if stopped else FinishReason.LENGTH
        return trajectory(request, sample, tokens, logprobs, [VersionSpan(0, self.version)], reason)


class FakeWorker(RolloutWorker):
    """A worker around an engine that is there already."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine


def pool_of(*engines: FakeEngine) -> EnginePool:
    handles = [LocalHandle(f"policy[{i}]", FakeWorker(engine)) for i, engine in enumerate(engines)]
    return EnginePool({"policy": handles}, Deadlines(rollout=5.0), max_restarts=0)
