"""The probes of several nodes, asked side by side."""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlpipe.runtime.preflight.nodes import ClusterNode
from rlpipe.runtime.preflight.probe import RemoteProbe

Question = Callable[[ClusterNode, Any], Any]
"""Of a node and its actor: the call of it that is to be answered."""
_LEAST_SECONDS = 2.0
"""For a question when the deadline is over: who is there answers at once."""
_FETCHING_SECONDS = 10.0
LATE = "no answer within"
"""So begins why one is silent that has not failed."""


class Probes:
    """One on each node. Who does not answer is not asked again."""

    def __init__(self, nodes: Sequence[ClusterNode], until: float, gpus: float = 0) -> None:
        """`until`: when all of them have answered all questions at the latest, by the monotonic clock. `gpus`: what
        each reserves."""
        self.silent: dict[ClusterNode, str] = {}
        """Why one has not answered."""
        self._until = until
        self._actors = {node: _start(node, gpus) for node in nodes}

    @property
    def nodes(self) -> list[ClusterNode]:
        """Those that have answered so far."""
        return list(self._actors)

    def among(self, nodes: Sequence[ClusterNode]) -> "Probes":
        """The same ones on some of the nodes."""
        some = Probes([], self._until)
        some.silent = self.silent
        some._actors = {node: actor for node, actor in self._actors.items() if node in nodes}
        return some

    def ask(self, question: Question, most: float = 1e9) -> dict[ClusterNode, Any]:
        """What they say to `question(node, actor)`, within `most` seconds."""
        asked = {question(node, actor): node for node, actor in self._actors.items()}
        seconds = max(_LEAST_SECONDS, min(most, self._until - time.monotonic()))
        ready = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)[0] if asked else []
        for ref in asked.keys() - set(ready):
            self._drop(asked[ref], f"{LATE} {seconds:.0f} s")
        answers: dict[ClusterNode, Any] = {}
        for ref in ready:
            try:
                answers[asked[ref]] = ray.get(ref, timeout=_FETCHING_SECONDS)
            except RayError as error:  # a GetTimeoutError, too
                self._drop(asked[ref], _said(error))
        return {node: answers[node] for node in asked.values() if node in answers}

    @property
    def seconds_left(self) -> float:
        return self._until - time.monotonic()

    def _drop(self, node: ClusterNode, why: str) -> None:
        self.silent[node] = why
        _end(self._actors.pop(node))

    def end(self) -> None:
        for actor in self._actors.values():
            _end(actor)


def _start(node: ClusterNode, gpus: float) -> Any:
    there = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return RemoteProbe.options(num_gpus=gpus, scheduling_strategy=there).remote()


def _end(actor: Any) -> None:
    with contextlib.suppress(RayError):
        ray.kill(actor)


def _said(error: RayError) -> str:
    """The cause is the last line of what Ray says of an error there, and the first of other troubles."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in reversed(lines) if "Error: " in line), lines[0])
