"""How fast the engines of a model are beside each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

MUCH_SLOWER = 2.0
"""Times its peers' time per token, and per decode step, that make an engine a straggler. Both: one that has few
responses left takes as long for a step as with many, and one that has many takes longer for it than with few."""
LEAST_STEPS = 16
"""Decode steps of an engine that are compared with others'."""
IN_A_ROW = 2
"""So often an engine must be that slow before it is told of: once may be another program's work."""


@dataclass(slots=True)
class Worked:
    """What an engine did in a while."""

    tokens: int = 0
    """Of responses that it finished in that time."""
    steps: int = 0
    """Decode steps."""
    seconds: float = 0.0
    """Spent in these, on the engine's own clock."""
    most_outstanding: int = 0
    """Most tokens of prompts and responses that it had before it at once, as expected."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / self.steps if self.steps else 0.0


def metrics(engines: Mapping[str, Worked]) -> dict[str, float]:
    """Of several engines: how many worked, the seconds of the one that worked longest, how much of them the others had
    nothing to do, and the tokens per second of the slowest. Nothing of a single one, which waits for nobody."""
    busy = [worked for worked in engines.values() if worked.steps]
    if len(engines) < 2 or not busy:
        return {}
    longest = max(worked.seconds for worked in busy)
    return {
        "engines/working": float(len(busy)),
        "engines/longest_seconds": longest,
        "engines/idle": 1.0 - sum(worked.seconds for worked in busy) / (len(busy) * longest),
        "engines/slowest_tokens_per_second": min(worked.tokens_per_second for worked in busy),
    }


class Stragglers:
    """Finds engines that are much slower than their peers."""

    def __init__(self) -> None:
        self._slow: dict[str, int] = {}
        """How often in a row each was."""

    def hear(self, engines: Mapping[str, Worked]) -> list[str]:
        """The engines that are to be told of now: once, until they have been faster again. An engine that did too
        little to be compared stays what it was."""
        compared = {name: w for name, w in engines.items() if w.steps >= LEAST_STEPS and w.tokens}
        for name, worked in compared.items():
            peers = [peer for other, peer in compared.items() if other != name]
            self._slow[name] = self._slow.get(name, 0) + 1 if peers and is_slow(worked, peers) else 0
        return [name for name in compared if self._slow[name] == IN_A_ROW]


def is_slow(engine: Worked, peers: list[Worked]) -> bool:
    """Whether it takes twice as long as the median of its peers, for a token and for a decode step."""
    per_token = median(peer.seconds / peer.tokens for peer in peers)
    per_step = median(peer.seconds_per_step for peer in peers)
    return (
        engine.seconds / engine.tokens >= MUCH_SLOWER * per_token and engine.seconds_per_step >= MUCH_SLOWER * per_step
    )
