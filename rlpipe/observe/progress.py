"""Where a stage stands, as the events tell it: what the terminal views draw."""

import math
from collections import deque
from typing import Any

from rlpipe.observe.events import Event
from rlpipe.observe.metrics import SIZES, label

SHOWN = {
    "sft": ("loss", "learning_rate", "tokens_per_second"),
    "reward_model": ("loss", "train_pair_accuracy", "margin", "learning_rate"),
    "dpo": ("loss", "rewards/accuracies", "rewards/margins", "learning_rate"),
    "kto": ("loss", "rewards/margins", "kl", "learning_rate"),
    "orpo": ("loss", "rewards/accuracies", "rewards/margins", "learning_rate"),
    "cpo": ("loss", "rewards/accuracies", "rewards/margins", "learning_rate"),
    "rl": (
        "reward",
        "reference_kl",
        "staleness/mean",
        "mismatch/abs",
        "entropy",
        "response_length",
        "tokens_per_second",
        "engines/idle",
    ),
}
"""Metrics of a step that fit on a line, by task; the first one's curve is drawn."""

HELDOUT = "heldout_"
"""Begins the names of what TRL's trainers measure on held-out records."""


class Progress:
    """The state of one stage. `update` takes events in their order."""

    def __init__(self, stage: str = ""):
        self.stage = stage
        self.task = ""
        self.steps = 0
        self.step = 0
        self.metrics: dict[str, float] = {}
        self.curve: list[float] = []
        self.evaluations: list[Event] = []
        self.sample: Event | None = None
        self.doing: list[tuple[str, float]] = []
        """Open phases, outermost first: what it says, and since when."""
        self.done = ""
        """How far the innermost open phase is, where it says so: `120/512`."""
        self._open: dict[str, float] = {}
        """Seconds so far of the phases of the step under way."""
        self._done: dict[str, float] = {}
        self._times: deque[tuple[int, float]] = deque(maxlen=20)

    def update(self, event: Event) -> None:
        match event["kind"]:
            case "run_started":
                self.task, self.steps = event["task"], event["steps"]
            case "planned":
                self.steps = event["steps"]
            case "phase_started":
                self.doing.append((event["says"], event["time"]))
                self.done = ""
            case "progress":
                self.done = event["says"]
            case "phase":
                self._end(event)
            case "metrics" if is_step(event):
                self._advance(event)
            case "evaluation":
                self.evaluations.append(event)
            case "sample":
                self.sample = event

    @property
    def headline(self) -> str:
        """The metric whose curve tells how the stage goes."""
        return SHOWN.get(self.task, ("",))[0]

    def line(self) -> str:
        """The metrics of the last step in one line."""
        names = [name for name in SHOWN.get(self.task, tuple(self.metrics)) if name in self.metrics]
        names += ["reward_failures"] if self.metrics.get("reward_failures") else []
        return "  ".join(label(name).brief(self.metrics[name]) for name in names)

    def shares(self) -> list[tuple[str, float]]:
        """Where the last step's time went: (phase, share), in the order of the phases."""
        total = sum(self._done.values())
        return [(name, seconds / total) for name, seconds in self._done.items()] if total else []

    def seconds_per_step(self) -> float | None:
        """Over the last steps, evaluations included."""
        if len(self._times) < 2:
            return None
        (first, begin), (last, end) = self._times[0], self._times[-1]
        return (end - begin) / (last - first) if last > first else None

    def seconds_left(self) -> float | None:
        per_step, steps = self.seconds_per_step(), self.steps - self.step
        return per_step * steps if per_step is not None and steps > 0 else None

    def _end(self, event: Event) -> None:
        self.done = ""
        names = [says for says, _ in self.doing]
        if event["says"] in names:
            del self.doing[len(names) - 1 - names[::-1].index(event["says"])]
        # A step that already has its metrics is over: what follows (an evaluation) is no part of it.
        if event["parent"] is None and event["step"] is not None and event["step"] > self.step:
            self._open[event["phase"]] = self._open.get(event["phase"], 0.0) + event["seconds"]

    def _advance(self, event: Event) -> None:
        self.step, self.metrics = event["step"], event["metrics"]
        self._times.append((event["step"], event["time"]))
        if math.isfinite(self.metrics.get(self.headline, math.nan)):
            self.curve.append(self.metrics[self.headline])
        self._done, self._open = self._open, {}


def is_step(event: Event) -> bool:
    """Whether an event holds the metrics of a step; those of SFT's held-out loss stand alone, before and after all, and
    the model's sizes before all."""
    names = event["metrics"] if event["kind"] == "metrics" else ()
    return not all(name.startswith(HELDOUT) or name in SIZES for name in names)


def is_heldout(event: Event) -> bool:
    """Whether an event holds what was measured on held-out data."""
    measured = event["kind"] == "metrics" and all(name.startswith(HELDOUT) for name in event["metrics"])
    return measured or event["kind"] == "evaluation"


def evaluation_line(event: dict[str, Any]) -> str:
    """`accuracy 68.2%  pass@4 82.0%  reward 0.68`: what is judged first, failures only where there are some."""
    metrics = {name: value for name, value in event["metrics"].items() if name != "failures" or value}
    names = sorted(metrics, key=lambda name: (name != "accuracy", not name.startswith("pass@")))
    return "  ".join(label(name.removeprefix(HELDOUT)).brief(metrics[name]) for name in names)


def duration(seconds: float) -> str:
    """`8.2 s`, `1:05`, `2:03:04`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
