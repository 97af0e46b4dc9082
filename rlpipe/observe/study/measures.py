"""What a finished run measured: its curves, and the figures of one row. Of a pipeline, those of its last stage."""

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from rlpipe.data.storage import Storage
from rlpipe.observe import events, rollouts
from rlpipe.observe.report.collect import stage_folders
from rlpipe.observe.tracking import scalars

HELDOUT = ("evaluation/", "heldout_")
"""How the names of held-out metrics begin: answers to held-out prompts; TRL's loss on held-out records."""


class Point(NamedTuple):
    """A value of a metric. `samples` are responses, or records of an offline run, seen so far."""

    step: int
    samples: int
    seconds: float
    metric: str
    value: float


def curves(run_dir: Path) -> list[Point]:
    """Every metric over the run, named as on TensorBoard. Of a step done again after a resume, the last value."""
    folders = stage_folders(Storage(run_dir))
    if not folders:
        return []
    storage = folders[-1]
    found, _ = events.read(storage)
    started = next((event for event in found if event["kind"] == "run_started"), None)
    if started is None:
        return []
    samples, begin = _samples(storage, started), started["time"]
    points: dict[tuple[int, str], Point] = {}
    for event in found:
        if event["kind"] not in ("metrics", "evaluation"):
            continue
        step, seen = event["step"], samples(event["step"])
        for name, value in scalars(event).items():
            points[step, name] = Point(step, seen, round(event["time"] - begin, 3), name, value)
    return list(points.values())


def figures(points: Sequence[Point], budget: int | None = None) -> dict[str, float]:
    """Steps, samples, the median of a step's seconds, and every metric's last value; of the points within a budget of
    samples, where there is one."""
    points = [point for point in points if budget is None or point.samples <= budget]
    if not points:
        return {}
    last = {point.metric: point.value for point in sorted(points, key=lambda point: point.step)}
    end = max(points, key=lambda point: point.step)
    return {"steps": end.step, "samples": end.samples, **last, **_step_seconds(points)}


def is_heldout(metric: str) -> bool:
    return metric.startswith(HELDOUT)


def _step_seconds(points: Sequence[Point]) -> dict[str, float]:
    """The median over steps; where a run does not measure them, from the times between its metrics."""
    measured = [point.value for point in points if point.metric == "step_seconds"]
    if not measured:
        times = {point.step: point.seconds for point in points if point.metric == "loss"}
        steps = sorted(times)
        measured = [(times[b] - times[a]) / (b - a) for a, b in pairwise(steps)]
    return {"step_seconds": statistics.median(measured)} if measured else {}


def _samples(storage: Storage, started: dict[str, Any]) -> Callable[[int], int]:
    """Samples seen at the end of a step. Online: the responses on disk, those of dropped groups among them."""
    if started["task"] == "rl":
        sizes = {step: _rows(storage, step) for step in rollouts.steps(storage)}
        return lambda step: sum(size for at, size in sizes.items() if at <= step)
    train = started["recipe"]["train"]
    per_step = train["per_device_train_batch_size"] * train["gradient_accumulation_steps"] * train["ranks"]
    return lambda step: step * per_step


def _rows(storage: Storage, step: int) -> int:
    return pq.read_metadata(storage.local / f"{rollouts.FOLDER}/step-{step:06d}.parquet").num_rows
