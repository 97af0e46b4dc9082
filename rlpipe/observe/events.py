"""events.jsonl: everything that happens in a run, one JSON object per line, append-only.

Every event has `time` (seconds since 1970), `kind` and, in a pipeline, `stage`. Kinds and their further fields:

    run_started     task, steps (planned, 0 if epochs are), recipe, versions, host, command        (see runinfo.py)
    trains_on       device (cuda | cpu)                           where the policy of an RL run learns
    check           name, status (ok | warn | fail | skip), detail, fix, seconds              what preflight found
    planned         steps                                         what a recipe's epochs amount to
    phase_started   phase, says (for people), step or null
    phase           phase, seconds, step or null, parent (the phase around it, or null), error (if it raised)
    metrics         step, metrics {name: number}    once per step, after its last phase (names: metrics.py)
    engines         step, engines [{name, node, tokens, seconds, tokens_per_second, seconds_per_step,
                    most_outstanding_tokens}]                     what each rollout engine did in the step
    evaluation      step, metrics {name: number}, samples [{prompt, completion, columns, reward or failure}],
                    asked (digest of prompts and rewards: those compare that have the same), model (its name, of
                    `task: eval`, where the step is its number)
    sample          step, prompt, completion, reward or failure                   one response of the step, to look at
    usage           reward, requests, retries, prompt_tokens, completion_tokens, unmetered, cost,
                    without_probabilities, failures {kind: count}    what a judge behind an endpoint took since the last
    commit          step, version                                                 the step is trained and published
    fault           message, step or null, fatal
    warning         message, lost (a role, if a process of it is lost and replaced)  what rlpipe's own loggers warn of
    note            message                                       a decision of the run that people should know of
    run_finished    status (completed | interrupted | failed), seconds, message

    progress        says                   how far the phase under way is: shown by whom it concerns, never written

NaN and infinities are written as the strings "nan", "inf", "-inf"; `read` gives them back as numbers in `metrics`.
Everything else that shows a run (terminal, TensorBoard, W&B, MLflow, report) is a view of these events: a function that
takes one. A view that raises is dropped with a fault event; it never stops the run.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from typing import Any

from rlpipe.data.storage import Storage
from rlpipe.recipe.secrets import hidden
from rlpipe.runtime.check import Check

NAME = "events.jsonl"

Event = dict[str, Any]
View = Callable[[Event], None]

_phase: ContextVar[str | None] = ContextVar("phase", default=None)


class EventLog:
    """Writes events and shows them to the views. Thread-safe; a view is called by one thread at a time."""

    def __init__(self, storage: Storage, stage: str | None = None, views: Sequence[View] = ()):
        torn = storage.exists(NAME) and not storage.read(NAME).endswith(b"\n")
        self._file = storage.append(NAME)
        if torn:  # a run that was killed while writing: leave its half line alone on its line
            self._file.write(b"\n")
        self._stage = stage
        self._views = list(views)
        self._lock = threading.RLock()
        self._noted: set[str] = set()
        self._begin = time.monotonic()

    def add(self, view: View) -> None:
        """Show it what comes from now on."""
        self._views.append(view)

    def emit(self, kind: str, **fields: Any) -> None:
        """Write one event, then show it."""
        event = self._event(kind, fields)
        with self._lock:
            self._file.write(
                json.dumps(_plain(event), ensure_ascii=False, allow_nan=False).encode(errors="replace") + b"\n"
            )
            self._show(event)

    def progress(self, says: str) -> None:
        """`120/512`: how far the phase under way is, for those who watch. It leaves no trace in the file."""
        with self._lock:
            self._show(self._event("progress", {"says": says}))

    @contextmanager
    def phase(self, name: str, step: int | None = None, says: str | None = None) -> Iterator[None]:
        """Measure the wall time of a block. `says` tells people what a long one does: `starting 2 vLLM engines`.

        Phases of a step are those of the loop's own thread, one after the other, so that they add up to the step.
        """
        parent, begin, error = _phase.get(), time.monotonic(), None
        token = _phase.set(name)
        self.emit("phase_started", phase=name, says=says or name, step=step, parent=parent)
        try:
            yield
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            _phase.reset(token)
            failed = {"error": error} if error else {}
            seconds = time.monotonic() - begin
            self.emit("phase", phase=name, says=says or name, seconds=seconds, step=step, parent=parent, **failed)

    def run_started(self, task: str, steps: int, info: dict[str, Any]) -> None:
        """`info` is `runinfo.collect(...)`."""
        self.emit("run_started", task=task, steps=steps, **info)

    def check(self, found: Check, seconds: float) -> None:
        """What preflight has found of the cluster."""
        self.emit("check", **asdict(found), seconds=seconds)

    def planned(self, steps: int) -> None:
        """What the epochs of a recipe amount to."""
        self.emit("planned", steps=steps)

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        self.emit("metrics", step=step, metrics=metrics)

    def evaluation(self, step: int, metrics: dict[str, float], samples: list[dict[str, Any]], **about: str) -> None:
        self.emit("evaluation", step=step, metrics=metrics, samples=samples, **about)

    def sample(self, step: int, prompt: str, completion: str, **outcome: Any) -> None:
        self.emit("sample", step=step, prompt=prompt, completion=completion, **outcome)

    def commit(self, step: int, version: int) -> None:
        self.emit("commit", step=step, version=version)

    def fault(self, message: str, step: int | None = None, fatal: bool = False) -> None:
        self.emit("fault", message=message, step=step, fatal=fatal)

    def warning(self, message: str, lost: str | None = None) -> None:
        self.emit("warning", message=message, **({"lost": lost} if lost else {}))

    def note(self, message: str) -> None:
        """Once, however often it is said."""
        if message not in self._noted:
            self._noted.add(message)
            self.emit("note", message=message)

    def run_finished(self, status: str, message: str = "") -> None:
        self.emit("run_finished", status=status, seconds=time.monotonic() - self._begin, message=message)

    def flush(self) -> None:
        """Whoever reads the file from now on finds all of it."""
        with self._lock:
            self._file.flush()

    def close(self) -> None:
        """Close the file and every view that can be closed."""
        with self._lock:
            for view in self._views:
                getattr(view, "close", lambda: None)()
            self._file.close()

    def _event(self, kind: str, fields: dict[str, Any]) -> Event:
        """Without any secret that this process knows: file and views are to have none."""
        about = {"time": round(time.time(), 6), "kind": kind} | ({"stage": self._stage} if self._stage else {})
        return about | hidden(fields)

    def _show(self, event: Event) -> None:
        for view in list(self._views):
            try:
                view(event)
            except Exception as error:
                self._views.remove(view)
                name, why = type(view).__name__, f"{type(error).__name__}: {error}"
                self.fault(f"{name} stopped: {why}. The run goes on without it.")


def read(storage: Storage) -> tuple[list[Event], list[str]]:
    """The events, and in words what could not be read: the last line of a killed run may be torn."""
    if not storage.exists(NAME):
        return [], [f"There is no {NAME}: the run ended before it wrote anything."]
    events, torn = [], []
    for number, line in enumerate(storage.read(NAME).splitlines(), start=1):
        try:
            events.append(_numbers(json.loads(line)))
        except ValueError:  # JSON's and UTF-8's errors alike
            if line.strip():
                torn.append(f"{NAME} line {number} is torn ({len(line)} bytes): the run was killed while writing it.")
    return events, torn


def _plain(value: Any) -> Any:
    """JSON's own types: numpy scalars as numbers, what is not finite as text, anything else as its text."""
    if isinstance(value, dict):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(child) for child in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    return _plain(value.item()) if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else str(value)


def _numbers(event: Event) -> Event:
    if "metrics" in event:
        event["metrics"] = {name: float(value) for name, value in event["metrics"].items()}
    return event
