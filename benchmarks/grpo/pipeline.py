"""One rlpipe GRPO step, measured from outside: the real recipe through `rlpipe run`, read from its events.jsonl."""

import shutil
import subprocess
import threading
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from grpo import machine
from grpo.command import RLPIPE, environment, read_events
from grpo.contestant import ContestantFailed, Sample
from grpo.machine import Reading
from grpo.startup import until_first_step
from grpo.work import LEARNING_RATE, SEED, Case

RECIPE = Path(__file__).with_name("step.yaml")
RUN_SECONDS = 900.0
READINGS_EVERY = 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one `rlpipe run` showed."""

    samples: list[Sample]
    startup: dict[str, float]
    """Seconds from the start of the command to the end of the first step, in order."""


def run(case: Case, engine: str, folder: Path, steps: int, warm_up: int, directory: Path) -> Run:
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
    }
    command = [*RLPIPE, "run", str(RECIPE), *(f"{k}={v}" for k, v in changes.items()), "--run-dir", str(directory)]
    shutil.rmtree(directory, ignore_errors=True)  # of an earlier benchmark with the same --keep
    with Readings() as readings:
        began = machine.reading().time
        _finish(command, directory.with_suffix(".log"))
    events = read_events(directory / "events.jsonl")
    _check_lengths(events, case)
    return Run(_samples(events, readings)[-steps:], until_first_step(events, began))


def _finish(command: list[str], log: Path) -> None:
    with log.open("w") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(), timeout=RUN_SECONDS
        )
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-8:]
        raise ContestantFailed(f"`rlpipe run` exited with {done.returncode}; {log} ends:\n" + "\n".join(last))


def _check_lengths(events: list[dict[str, Any]], case: Case) -> None:
    lengths = {event["metrics"]["response_length"] for event in events if event["kind"] == "metrics"}
    if lengths != {float(case.new_tokens)}:
        raise ContestantFailed(f"generated responses of other lengths than {case.new_tokens}: means {sorted(lengths)}")


def _samples(events: list[dict[str, Any]], readings: "Readings") -> list[Sample]:
    """Every step but the first, from the end of the one before: whatever the driver does in between counts."""
    ends = [(event["step"], event["time"]) for event in events if event["kind"] == "metrics"]
    return [_sample(events, step, begin, end, readings) for (_, begin), (step, end) in pairwise(ends)]


def _sample(events: list[dict[str, Any]], step: int, begin: float, end: float, readings: "Readings") -> Sample:
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
