"""One rlpipe step, measured from outside: the real recipe through `rlpipe run`, read from its events.jsonl."""

import shutil
import subprocess
import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median_low

from step import machine, traced, waterfall
from step.command import TRACED, Event, environment, read_events
from step.contest import Contest
from step.contestant import ContestantFailed, Sample
from step.machine import Reading
from step.startup import until_first_step
from step.waterfall import Bar
from step.work import LEARNING_RATE, SEED, Case

RUN_SECONDS = 900.0
READINGS_EVERY = 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one `rlpipe run` showed."""

    samples: list[Sample]
    startup: dict[str, float]
    """Seconds from the start of the command to the end of the first step, in order."""
    waterfall: list[Bar]
    """Of the step of median length."""


def run(
    contest: Contest,
    case: Case,
    engine: str,
    folder: Path,
    steps: int,
    warm_up: int,
    directory: Path,
    rlpipe: Sequence[str] = TRACED,
) -> Run:
    """Run `warm_up + steps` steps; the samples are those of the last `steps`. Raises `ContestantFailed`."""
    changes = {
        "model.path": folder,
        "seed": SEED,
        "rollout.engine": engine,
        "rollout.max_new_tokens": case.new_tokens,
        "rollout.max_num_seqs": case.samples,
        "rollout.threads": machine.THREADS,
        "algorithm.group_size": case.group,
        "schedule.prompts_per_step": case.prompts,
        "schedule.steps": warm_up + steps,
        "train.threads": machine.THREADS,
        "train.optimizer.learning_rate": LEARNING_RATE,
    } | contest.changes
    trace = directory.with_suffix(".calls")
    command = [*rlpipe, str(trace), "run", str(contest.recipe), *(f"{k}={v}" for k, v in changes.items())]
    shutil.rmtree(directory, ignore_errors=True)  # of an earlier benchmark with the same --keep
    trace.unlink(missing_ok=True)
    with Readings() as readings:
        began = machine.reading().time
        _finish([*command, "--run-dir", str(directory)], directory.with_suffix(".log"))
    events = read_events(directory / "events.jsonl")
    _check_lengths(events, case)
    spans = _spans(events)[-steps:]
    samples = [_sample(events, span, readings) for span in spans]
    lengths = [sample.seconds for sample in samples]
    typical = lengths.index(median_low(lengths))
    shown = waterfall.bars(events, traced.read(trace.read_text().splitlines()), *spans[typical])
    return Run(samples, until_first_step(events, began), shown)


def _finish(command: list[str], log: Path) -> None:
    with log.open("w") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(), timeout=RUN_SECONDS
        )
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-8:]
        raise ContestantFailed(f"`rlpipe run` exited with {done.returncode}; {log} ends:\n" + "\n".join(last))


def _check_lengths(events: list[Event], case: Case) -> None:
    lengths = {event["metrics"]["response_length"] for event in events if event["kind"] == "metrics"}
    if lengths != {float(case.new_tokens)}:
        raise ContestantFailed(f"generated responses of other lengths than {case.new_tokens}: means {sorted(lengths)}")


def _spans(events: list[Event]) -> list[tuple[int, float, float]]:
    """Every step but the first, with its beginning, which is the end of the one before, and its end: whatever the
    driver does in between counts."""
    ends = [(event["step"], event["time"]) for event in events if event["kind"] == "metrics"]
    return [(step, begin, end) for (_, begin), (step, end) in pairwise(ends)]


def _sample(events: list[Event], span: tuple[int, float, float], readings: "Readings") -> Sample:
    step, begin, end = span
    parts: dict[str, float] = {}
    for event in events:
        if event["kind"] == "phase" and event["step"] == step and event["parent"] is None and event["time"] <= end:
            parts[event["phase"]] = parts.get(event["phase"], 0.0) + event["seconds"]
    return Sample(parts | {"rest": end - begin - sum(parts.values())}, readings.others(begin, end))


class Readings:
    """Reads the machine's counters every second, beside a run that cannot be stopped between steps."""

    def __init__(self) -> None:
        self._readings: list[Reading] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Readings":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def others(self, begin: float, end: float) -> float:
        """Share of the cores that others used between the readings around a stretch of time."""
        times = [reading.time for reading in self._readings]
        first = max(0, bisect_left(times, begin) - 1)
        last = min(len(times) - 1, bisect_left(times, end))
        return machine.others(self._readings[first], self._readings[last])

    def _read(self) -> None:
        while not self._done.wait(READINGS_EVERY):
            self._readings.append(machine.reading())
        self._readings.append(machine.reading())
