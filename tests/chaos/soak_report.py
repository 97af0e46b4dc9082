"""What a soak found, from the runs' own events and rollouts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rlpipe.data.storage import Storage
from rlpipe.observe.events import read

NOT_SEEN = "not before the run's end"


@dataclass(frozen=True)
class Fault:
    """What was done to a process."""

    run: str
    kind: str
    whom: str
    """`role` or `driver`."""
    after_step: int
    at: float
    """Seconds since the epoch."""


def report(folder: Path, runs: Sequence[tuple[str, list[Fault], str]], seed: int) -> str:
    """Markdown: a line for each fault, and how the runs ended."""
    lines = [
        f"# Soak, seed {seed}: {len(runs)} runs, {sum(len(faults) for _, faults, _ in runs)} faults", "",
        "| run | fault | after step | of | noticed after | serving again after | lost |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, faults, wrong in runs:
        events = read(Storage(folder / name))[0]
        lines += [row(fault, events, wrong or "nothing") for fault in faults]
    failed = [f"- {name}: {wrong}" for name, _, wrong in runs if wrong]
    return "\n".join([*lines, "", *(failed or ["Every run ended well, and nothing was lost."]), ""])


def row(fault: Fault, events: list[dict[str, Any]], lost: str) -> str:
    """As the run itself told it."""
    whom, noticed, again = _driver(fault, events) if fault.whom == "driver" else _role(fault, events)
    cells = (fault.run, fault.kind, fault.after_step, whom, _since(fault, noticed), _since(fault, again), lost)
    return f"| {' | '.join(map(str, cells))} |"


def _driver(fault: Fault, events: list[dict[str, Any]]) -> tuple[str, float | None, float | None]:
    later = [event for event in events if event["time"] > fault.at]
    begun = next((event["time"] for event in later if event["kind"] == "run_started"), None)
    goes_on = (e["time"] for e in later if e["kind"] == "commit" and e["step"] > fault.after_step)
    return "the driver", begun, next(goes_on, None)


def _role(fault: Fault, events: list[dict[str, Any]]) -> tuple[str, float | None, float | None]:
    said = [(e["time"], e["message"]) for e in events if e["kind"] == "warning" and e["time"] > fault.at]
    for noticed, message in said:
        if found := re.match(r"(\S+) is lost: ", message):
            back = f"{found[1]} serves again"
            return found[1], noticed, next((at for at, words in said if words.startswith(back)), None)
        if "The training roles" in message and "start again" in message:
            back = "the training roles are there again"
            return "a training rank", noticed, next((at for at, words in said if words.startswith(back)), None)
    return "a role", None, None


def _since(fault: Fault, at: float | None) -> str:
    return NOT_SEEN if at is None else f"{at - fault.at:.1f} s"


def steps(directory: Path) -> int:
    """How many are committed."""
    return len(list((directory / "rollouts").glob("step-*.parquet")))


def trained_on(directory: Path) -> list[list[Any]]:
    """Prompts, epochs and tokens in the order of training. Lease ids may differ: a prompt that was leased twice was
    answered once."""
    columns = ("prompt_id", "epoch", "sample_index", "response_tokens")
    files = sorted((directory / "rollouts").glob("step-*.parquet"))
    return [[row[name] for name in columns] for file in files for row in pq.read_table(file).to_pylist()]


def losses(directory: Path) -> dict[int, float]:
    """By step."""
    found = [event for event in read(Storage(directory))[0] if event["kind"] == "metrics"]
    return {event["step"]: event["metrics"]["loss"] for event in found if "loss" in event["metrics"]}
