"""How long it takes to get going, and what that is made of."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from step.command import RLPIPE, Event, environment, read_events
from step.contestant import ContestantFailed

SECONDS = 600.0
DEMO = "arithmetic/pipeline"
PIECES = ("ray", "policy", "vllm", "transformers")


def until_first_step(events: list[Event], began: float) -> dict[str, float]:
    """Seconds from `began` to the first training step's metrics: before the run says that it has started, each phase,
    and what lies between them."""
    started = next(event["time"] for event in events if event["kind"] == "run_started")
    first = next(event["time"] for event in events if event["kind"] == "metrics")
    parts = {"command, imports, Ray": started - began}
    for name, begin, end in _phases(events, first):
        parts[name] = parts.get(name, 0.0) + end - begin
    return parts | {"between": first - began - sum(parts.values())}


def _phases(events: list[Event], first: float) -> Iterable[tuple[str, float, float]]:
    """(name, begin, end) of the outermost phases up to `first`; those of step 1 together are the first step."""
    outer = [event for event in events if event.get("parent", "") is None]
    for i, event in enumerate(outer):
        if event["kind"] == "phase_started" and event["time"] < first:
            ends = (e["time"] for e in outer[i:] if e["kind"] == "phase" and e["phase"] == event["phase"])
            yield "first step" if event["step"] == 1 else event["phase"], event["time"], min(first, next(ends, first))


def demo(directory: Path) -> dict[str, dict[str, float]]:
    """The demo as it is, but for an SFT stage of 20 steps, until the first RL step: parts by stage. Raises
    `ContestantFailed`."""
    stages = {name: directory / "stages" / name / "events.jsonl" for name in ("sft", "grpo")}
    changes = ["stages.sft.train.max_steps=20", "stages.sft.train.logging_steps=1"]
    began = time.time()
    with directory.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            [*RLPIPE, "run", DEMO, *changes, "--run-dir", str(directory)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(),
        )  # fmt: skip
        _wait_for_metrics(stages["grpo"], process)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    sft, grpo = (read_events(file) for file in stages.values())
    return {
        "first SFT step": until_first_step(sft, began),
        "then first RL step": until_first_step(grpo, sft[-1]["time"]),
    }


def _wait_for_metrics(file: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + SECONDS
    while not any(event["kind"] == "metrics" for event in read_events(file)):
        if process.poll() is not None:
            raise ContestantFailed(f"the demo ended with {process.returncode} before its first RL step")
        if time.monotonic() > until:
            process.kill()
            raise ContestantFailed(f"the demo took more than {SECONDS:.0f} s to its first RL step")
        time.sleep(0.2)


def pieces(model: Path) -> dict[str, dict[str, float]]:
    """Ray, the policy and each engine started alone, in a process of their own: seconds of their parts."""
    return {f"{name} alone": _piece(name, model) for name in PIECES}


def _piece(name: str, model: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "step.piece", name, str(model)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment(), timeout=SECONDS,
    )  # fmt: skip
    if done.returncode:
        raise ContestantFailed(f"starting {name} alone failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])
