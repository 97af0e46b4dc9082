"""What the engines of a run do beside each other, and which of them is slow."""

from collections import Counter

from rlpipe.observe.events import EventLog
from rlpipe.rollout import speed
from rlpipe.rollout.pool import EnginePool
from rlpipe.rollout.speed import Stragglers, Worked


class EngineWatch:
    """Tells of the engines of one model, step by step."""

    def __init__(self, model: str, pool: EnginePool, events: EventLog) -> None:
        self._model, self._pool, self._events = model, pool, events
        self._stragglers = Stragglers()
        self._told: dict[str, str] = {}

    def begin(self) -> None:
        """What engines did up to now, such as for an evaluation, is no part of the step."""
        self._pool.worked(self._model)
        self._say_where()

    def _say_where(self) -> None:
        """If that has changed."""
        nodes = {name: node for name, node in self._pool.nodes(self._model).items() if node}
        if len(nodes) > 1 and nodes != self._told:
            self._told = nodes
            self._events.note(_placed(nodes))

    def tell(self, step: int) -> dict[str, float]:
        """Of the step: an event with each engine, a warning of stragglers, and metrics."""
        self._say_where()
        worked, nodes = self._pool.worked(self._model), self._pool.nodes(self._model)
        rows = [_row(name, nodes[name], each) for name, each in worked.items()]
        self._events.emit("engines", step=step, engines=rows)
        for name in self._stragglers.hear(worked):
            self._events.warning(_slow(name, nodes[name], worked))
        return speed.metrics(worked)


def _placed(nodes: dict[str, str]) -> str:
    counts = Counter(nodes.values())
    where = ", ".join(f"{count} on {node}" for node, count in sorted(counts.items()))
    return f"{len(nodes)} engines on {len(counts)} node{'s' * (len(counts) > 1)}: {where}"


def _row(name: str, node: str, worked: Worked) -> dict[str, str | float]:
    return {
        "name": name,
        "node": node,
        "tokens": worked.tokens,
        "seconds": round(worked.seconds, 4),
        "tokens_per_second": round(worked.tokens_per_second, 1),
        "seconds_per_step": round(worked.seconds_per_step, 6),
        "most_outstanding_tokens": worked.most_outstanding,
    }


def _slow(name: str, node: str, worked: dict[str, Worked]) -> str:
    own = worked[name]
    others = [each for other, each in worked.items() if other != name and each.steps]
    fastest = max(each.tokens_per_second for each in others)
    return (
        f"{name}{f' on {node}' * bool(node)} is much slower than its peers, {speed.IN_A_ROW} steps in a row: "
        f"{own.tokens_per_second:.0f} tokens/s and {1000 * own.seconds_per_step:.0f} ms for a decode step; the fastest "
        f"of {len(others)} peers: {fastest:.0f} tokens/s. Each step waits for it: look for other programs on its node, "
        "or a slower GPU."
    )
