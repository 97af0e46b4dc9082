"""News from training processes to the driver, while they train."""

import time
from collections.abc import Callable
from typing import Any, Protocol

Report = Callable[[int, dict[str, float]], None]
"""Called in the driver's process with the optimizer step and its metrics."""


class Progress(Protocol):
    """What a training function tells about itself."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Figures of one optimizer step, for the driver's `report`."""

    def alive(self, doing: str) -> None:
        """A sign of life, cheap enough for every step; `doing` appears in the error if it is the last one."""


class LocalProgress:
    """Training in the driver's own process."""

    def __init__(self, report: Report) -> None:
        self.metrics = report

    def alive(self, doing: str) -> None:
        """Nobody waits."""


class Channel:
    """An actor between the training processes and the driver; it holds what the driver has not fetched yet."""

    def __init__(self, keys: dict[str, str] | None = None) -> None:
        """`keys`: what the processes get of secrets. Here, since Ray Train shows what it is given for them."""
        self._keys = keys or {}
        self._metrics: list[tuple[int, dict[str, float]]] = []
        self._doing: str | None = None
        self._processes: dict[int, Any] = {}

    def join(self, rank: int, process: Any) -> dict[str, str]:
        """A training process, by its actor handle, so that the driver can ask and end it; it is given its keys."""
        self._processes[rank] = process
        return self._keys

    def put(self, doing: str, metrics: tuple[int, dict[str, float]] | None) -> None:
        self._doing = doing
        if metrics is not None:
            self._metrics.append(metrics)

    def fetch(self) -> tuple[list[tuple[int, dict[str, float]]], str | None]:
        """The metrics since the last fetch, and the last sign of life since then."""
        news = self._metrics, self._doing
        self._metrics, self._doing = [], None
        return news

    def processes(self) -> dict[int, Any]:
        """By rank."""
        return self._processes


class RemoteProgress:
    """Training in a Ray Train worker. Only rank 0 speaks."""

    _SECONDS_BETWEEN_SIGNS = 1.0

    def __init__(self, channel: Any, speaks: bool) -> None:
        self._channel = channel
        self._speaks = speaks
        self._last = 0.0

    def metrics(self, step: int, values: dict[str, float]) -> None:
        if self._speaks:
            self._channel.put.remote(f"step {step}", (step, values))

    def alive(self, doing: str) -> None:
        now = time.monotonic()
        if self._speaks and now - self._last >= self._SECONDS_BETWEEN_SIGNS:
            self._last = now
            self._channel.put.remote(doing, None)
