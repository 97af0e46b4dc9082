"""The driver, roles and engines in one picture."""

import pytest
import trace_format

from rlpipe.observe.trace import numbered, timeline
from rlpipe.runtime.recorder import Call


def phase(kind: str, time: float, name: str, step: int | None = 1, parent: str | None = None, **more) -> dict:
    return {"kind": kind, "time": time, "phase": name, "says": name, "step": step, "parent": parent, **more}


EVENTS = [
    {"kind": "run_started", "time": 100.0, "steps": 1},
    phase("phase_started", 101.0, "train"),
    phase("phase_started", 101.5, "checkpoint", parent="train"),
    phase("phase", 102.0, "checkpoint", parent="train", seconds=0.5),
    phase("phase", 103.0, "train", seconds=2.0),
    {"kind": "commit", "time": 103.5, "step": 1, "version": 1},
    {"kind": "metrics", "time": 104.0, "step": 1, "metrics": {"loss": 1.0}},
    phase("phase_started", 105.0, "evaluate"),
    {"kind": "fault", "time": 106.0, "message": "killed"},
]
CALLS = {"policy[1]": [Call("policy", "Policy.update", 101.25, 1.5)], "engine": []}


def drawn(row: tuple[str, str]) -> list[tuple]:
    events = timeline(EVENTS, CALLS)["traceEvents"]
    return [(e["name"], e["ts"], e["dur"]) for e in trace_format.spans(events, row)]


def test_phases_lie_in_each_other_and_steps_above_them():
    assert drawn(("driver", "steps")) == [("step 1", 1e6, 3e6)]
    phases = [("train", 1e6, 2e6), ("checkpoint", 1.5e6, 0.5e6), ("evaluate", 5e6, 1e6)]
    assert drawn(("driver", "phases")) == phases, "the last one was cut off by a kill"


def test_calls_of_roles_have_rows_of_their_processes_on_the_same_clock():
    assert drawn(("policy[1]", "policy")) == [("Policy.update", 1.25e6, 1.5e6)]


def test_it_is_what_the_format_demands():
    events = timeline(EVENTS, CALLS)["traceEvents"]
    for event in events:
        trace_format.check(event)
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
    trace_format.nests(events)
    assert [(e["name"], e["ts"]) for e in events if e["ph"] == "i"] == [("commit", 3.5e6), ("fault", 6e6)]
    unfinished = [e for e in events if e.get("args", {}).get("unfinished")]
    assert [e["name"] for e in unfinished] == ["evaluate"]


def test_spans_that_cross_are_noticed():
    crossing = [{"ph": "X", "name": n, "pid": 1, "tid": 1, "ts": ts, "dur": 100.0} for n, ts in (("a", 0), ("b", 50))]
    with pytest.raises(AssertionError):
        trace_format.nests(crossing)


def test_rows_with_texts_for_numbers_get_numbers():
    ray = [{"ph": "X", "name": "run", "ts": 1.0, "dur": 2.0, "pid": "10.0.0.1", "tid": f"worker:{i}"} for i in "ab"]
    events = numbered(ray)["traceEvents"]
    assert len(trace_format.spans(events, ("10.0.0.1", "worker:b"))) == 1
    assert {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"} == {(1, 1), (1, 2)}
