"""Traces in the trace event format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: `ph` X is a span with `ts` and `dur` in
microseconds, i an instant, M the name of a process or a thread; `pid` and `tid` say in which row it is drawn. Spans of
a row that overlap lie inside each other.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlpipe.observe.events import Event
from rlpipe.runtime.recorder import Call

TraceEvent = dict[str, Any]

DRIVER = "driver"
_INSTANTS = ("commit", "fault", "warning", "note")
KINDS = ("run_started", "phase_started", "phase", "metrics", "run_finished", *_INSTANTS)
"""Of the events that a timeline is made from."""


class Rows:
    """Numbers for rows by the names of process and thread, in the order in which they come."""

    def __init__(self) -> None:
        self.names: list[TraceEvent] = []
        self._processes: dict[str, int] = {}
        self._threads: dict[tuple[str, str], int] = {}

    def row(self, process: str, thread: str) -> dict[str, int]:
        """`pid` and `tid` of this row."""
        if process not in self._processes:
            pid = self._processes[process] = len(self._processes) + 1
            self._name(pid, 0, "process_name", name=process)
            self._name(pid, 0, "process_sort_index", sort_index=pid)
        pid = self._processes[process]
        if (process, thread) not in self._threads:
            tid = self._threads[process, thread] = len(self._threads) + 1
            self._name(pid, tid, "thread_name", name=thread)
            self._name(pid, tid, "thread_sort_index", sort_index=tid)
        return {"pid": pid, "tid": self._threads[process, thread]}

    def _name(self, pid: int, tid: int, what: str, **arguments: Any) -> None:
        self.names.append({"ph": "M", "ts": 0, "pid": pid, "tid": tid, "name": what, "args": arguments})


def timeline(found: Sequence[Event], calls: Mapping[str, Sequence[Call]]) -> dict[str, Any]:
    """One picture of a stage: the driver's steps and phases from its events, and below them the calls of roles, by the
    name of their process, as far as they were recorded. Times are relative to the first event."""
    zero, rows = found[0]["time"] if found else 0.0, Rows()
    drawn = [*_steps(found, rows, zero), *_phases(found, rows, zero), *_instants(found, rows, zero)]
    for process in calls:
        for call in calls[process]:
            drawn.append(_span(call.what, call.begin - zero, call.seconds, rows.row(process, call.role)))
    return _file([*rows.names, *sorted(drawn, key=lambda event: (event["ts"], -event.get("dur", 0)))], zero)


def numbered(given: Sequence[TraceEvent]) -> dict[str, Any]:
    """Trace events whose rows have texts for numbers, as Ray's have, as the format has it."""
    rows = Rows()
    placed = [event | rows.row(str(event["pid"]), str(event["tid"])) for event in given]
    return _file([*rows.names, *placed], 0.0)


def _file(drawn: list[TraceEvent], zero: float) -> dict[str, Any]:
    return {"traceEvents": drawn, "displayTimeUnit": "ms", "otherData": {"begin": zero}}


def _span(name: str, begin: float, seconds: float, row: Mapping[str, int], **arguments: Any) -> TraceEvent:
    span = {"ph": "X", "name": name, "ts": round(begin * 1e6, 3), "dur": round(seconds * 1e6, 3), **row}
    return span | ({"args": arguments} if arguments else {})


def _phases(found: Sequence[Event], rows: Rows, zero: float) -> Iterator[TraceEvent]:
    """Those that a kill has cut off end with the last event."""
    row, under_way = rows.row(DRIVER, "phases"), []
    for event in found:
        if event["kind"] == "phase_started":
            under_way.append(event)
        elif event["kind"] == "phase":
            begun = _last(under_way, event)
            if begun is not None:
                under_way.remove(begun)
                failed = {"error": event["error"]} if "error" in event else {}
                yield _phase(begun, event["time"], row, zero, **failed)
    for begun in under_way:
        yield _phase(begun, found[-1]["time"], row, zero, unfinished=True)


def _last(under_way: Sequence[Event], ended: Event) -> Event | None:
    same = [event for event in under_way if (event["phase"], event["step"]) == (ended["phase"], ended["step"])]
    return same[-1] if same else None


def _phase(begun: Event, end: float, row: Mapping[str, int], zero: float, **more: Any) -> TraceEvent:
    step = {} if begun["step"] is None else {"step": begun["step"]}
    return _span(begun["phase"], begun["time"] - zero, end - begun["time"], row, says=begun["says"], **step, **more)


def _steps(found: Sequence[Event], rows: Rows, zero: float) -> Iterator[TraceEvent]:
    """From a step's first phase to its metrics."""
    row, begun = rows.row(DRIVER, "steps"), {}
    for event in found:
        if event["kind"] == "phase_started" and event["step"] is not None and event["parent"] is None:
            begun.setdefault(event["step"], event["time"])
        elif event["kind"] == "metrics" and event["step"] in begun:
            begin = begun.pop(event["step"])
            yield _span(f"step {event['step']}", begin - zero, event["time"] - begin, row)


def _instants(found: Sequence[Event], rows: Rows, zero: float) -> Iterator[TraceEvent]:
    row = rows.row(DRIVER, "phases")
    for event in found:
        if event["kind"] in _INSTANTS:
            says = event["message"] if "message" in event else f"step {event['step']}"
            at = round((event["time"] - zero) * 1e6, 3)
            yield {"ph": "i", "s": "p", "name": event["kind"], "ts": at, **row, "args": {"says": says}}
