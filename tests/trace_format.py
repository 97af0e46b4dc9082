"""What the trace event format demands of a file, as far as Perfetto hangs on it."""

import gzip
import json
from itertools import groupby
from pathlib import Path

_ROUNDING = 1.0
"""Microseconds by which a span may stick out of the one around it."""


def read(file: Path) -> list[dict]:
    """The events of a file, once all of them are right."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    events = json.loads(data)["traceEvents"]
    assert events
    for event in events:
        check(event)
    return events


def check(event: dict) -> None:
    assert event["ph"] in "XiMsft" and isinstance(event["name"], str), event
    assert {"pid", "tid"} <= event.keys() and isinstance(event["ts"], (int, float)), event
    if event["ph"] == "X":
        assert event["dur"] >= 0, event
    if event["ph"] == "M":
        assert event["args"], event


def spans(events: list[dict], row: tuple[str, str]) -> list[dict]:
    """Of a row, by the names of its process and its thread, in order of time."""
    named = {(e["name"], e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"].endswith("s_name")}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    processes = {pid: name for (what, pid, _), name in named.items() if what == "process_name"}
    drawn = [e for e in events if e["ph"] == "X"]
    chosen = [e for e in drawn if (processes.get(e["pid"]), threads.get((e["pid"], e["tid"]))) == row]
    return sorted(chosen, key=lambda e: (e["ts"], -e["dur"]))


def nests(events: list[dict]) -> None:
    """Spans of a row that overlap lie inside each other."""
    drawn = sorted((e for e in events if e["ph"] == "X"), key=_row)
    for row, own in groupby(drawn, key=_row):
        around: list[float] = []
        for span in sorted(own, key=lambda e: (e["ts"], -e["dur"])):
            while around and around[-1] <= span["ts"] + _ROUNDING:
                around.pop()
            end = span["ts"] + span["dur"]
            assert not around or end <= around[-1] + _ROUNDING, (row, span)
            around.append(end)


def _row(event: dict) -> tuple[str, str]:
    return str(event["pid"]), str(event["tid"])
