"""Engines without compute, for measurements of what controls engines, and for nothing else.

A `SimulatedEngine` is a handle: it takes the calls that the pool makes of a `RolloutWorker`, and answers them when an
engine of its speed would have. Its answers are pickled, as those of a process are, and the controller unpickles them.
"""

import heapq
import pickle
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fleet.clock import Clock
from rlpipe.data.flow import FinishReason, GroupRequest, Trajectory, VersionSpan
from rlpipe.rollout.engine import Receipt
from rlpipe.rollout.records import trajectory
from rlpipe.rollout.worker import Slice
from rlpipe.runtime.handle import Within

SLOTS = 256
"""Responses that an engine decodes at once."""
TOKENS_PER_SECOND = 50.0
"""Of each of them."""
PUBLISH_SECONDS = 0.5


class SimulatedPending:
    """A call whose answer is there at a moment of the clock."""

    __slots__ = ("_answer", "_clock", "at")

    def __init__(self, clock: Clock, at: float, answer: Callable[[], bytes]) -> None:
        self._clock, self.at, self._answer = clock, at, answer

    def result(self) -> Any:
        self._clock.skip_to(self.at)
        with self._clock.left_out():
            data = self._answer()
        return pickle.loads(data)

    def seconds_left(self) -> float:
        return 600.0

    @classmethod
    def ready(cls, pendings: Sequence["SimulatedPending"], seconds: float) -> list["SimulatedPending"]:
        """Ray's part, which `ray_calls` measures: nothing of it is the controller's here."""
        clock = pendings[0]._clock
        with clock.left_out():
            first = min(pending.at for pending in pendings)
            now = clock.monotonic()
        clock.skip_to(min(first, now + seconds))
        with clock.left_out():
            now = clock.monotonic()
            return [pending for pending in pendings if pending.at <= now]


@dataclass(slots=True)
class Lengths:
    """Response lengths, log-normal around a median."""

    median: int = 100
    longest: int = 512
    draws: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def draw(self, count: int) -> list[int]:
        lengths = self.draws.lognormal(np.log(self.median), 0.6, count)
        return np.clip(lengths, 1, self.longest).astype(int).tolist()


class SimulatedEngine:
    """See above."""

    begun, node = True, ""

    def __init__(self, name: str, clock: Clock, lengths: Lengths, answers: "list[np.ndarray]") -> None:
        """`answers`: to every probe, always."""
        self.name, self._clock, self._lengths, self.answers = name, clock, lengths, answers
        self._version, self._free_at = 0, 0.0
        self._slots: list[float] = []
        self._coming: list[tuple[float, int, GroupRequest, int, int]] = []
        self._numbers = iter(range(1 << 60))
        self.calls = 0

    def call(self, within: Within, method: Callable[..., Any], /, *args: Any) -> SimulatedPending:
        self.calls += 1
        with self._clock.left_out():
            return getattr(self, f"_{method.__name__}")(*args)

    def _submit(self, requests: list[GroupRequest]) -> SimulatedPending:
        now = self._clock.monotonic()
        for request in requests:
            for sample, length in enumerate(self._lengths.draw(len(request.seeds))):
                begins = heapq.heappop(self._slots) if len(self._slots) >= SLOTS else now
                ends = max(begins, now) + length / TOKENS_PER_SECOND
                heapq.heappush(self._slots, ends)
                heapq.heappush(self._coming, (ends, next(self._numbers), request, sample, length))
        return self._at(now, None)

    def _advance(self, seconds: float) -> SimulatedPending:
        begins = max(self._free_at, self._clock.monotonic())
        self._free_at = begins + seconds
        finished = deque()
        while self._coming and self._coming[0][0] <= self._free_at:
            finished.append(heapq.heappop(self._coming))
        if finished and not self._coming:
            self._free_at = max(begins, finished[-1][0])
        steps, spent = int(TOKENS_PER_SECOND * seconds), self._free_at - begins
        version = self._version

        def answer() -> bytes:
            return pickle.dumps(Slice([_answer(*row[2:], version) for row in finished], steps, spent), protocol=5)

        return SimulatedPending(self._clock, self._free_at, answer)

    def _publish(self, version: int, payload: SimulatedPending) -> SimulatedPending:
        self._version = version
        self._free_at = max(self._free_at, self._clock.monotonic()) + PUBLISH_SECONDS
        return self._at(self._free_at, Receipt(version, f"digest {version}", PUBLISH_SECONDS))

    def _probe(self, probes: list[np.ndarray]) -> SimulatedPending:
        return self._at(self._free_at, [answer - np.float32(self._version) * 1e-3 for answer in self.answers])

    def _abort(self, group_ids: list[str]) -> SimulatedPending:
        doomed = set(group_ids)
        self._coming = [row for row in self._coming if row[2].group_id not in doomed]
        heapq.heapify(self._coming)
        return self._at(self._clock.monotonic(), None)

    def _at(self, moment: float, value: Any) -> SimulatedPending:
        return answered(self._clock, moment, value)


def answered(clock: Clock, moment: float, value: Any) -> SimulatedPending:
    """A call whose answer is this, from a moment on."""
    data = pickle.dumps(value, protocol=5)
    return SimulatedPending(clock, moment, lambda: data)


def _answer(request: GroupRequest, sample: int, length: int, version: int) -> Trajectory:
    """Tokens that are characters for the tokenizer from scratch, with some log-probabilities."""
    tokens = (10 + np.arange(length, dtype=np.int32) % 200).astype(np.int32)
    logprobs = np.full(length, -0.5, np.float32)
    return trajectory(request, sample, tokens, logprobs, [VersionSpan(0, version)], FinishReason.STOP)
