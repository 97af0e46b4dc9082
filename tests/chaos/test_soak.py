"""A short soak: two role processes and the driver of one run, at moments that a seed has chosen; and its report."""

import json
import random
import signal
import subprocess

import psutil
import pytest
import soak
from soak_report import Fault, report


@pytest.mark.soak
@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_a_run_that_is_struck_again_and_again_loses_nothing(tmp_path):
    subject = soak.Soak(tmp_path, ["schedule.steps=24"])
    for name, whom, count in (("roles", ("role",), 2), ("driver", ("driver",), 1)):
        faults, wrong = subject.disturbed(name, random.Random(3), count, whom)
        assert (wrong, len(faults)) == ("", count), "what is wrong, and whether every fault has fired"
        said = subject.log(name).read_text()
        mended = ("A new process takes its place", "start again", "resuming from step")
        assert sum(said.count(words) for words in mended) >= count


def test_only_the_process_that_was_stopped_is_killed_and_none_that_has_got_its_number(monkeypatch):
    child = subprocess.Popen(["sleep", "60"])
    process = psutil.Process(child.pid)
    with monkeypatch.context() as patch:
        patch.setattr(process, "_ident", (child.pid, process.create_time() - 100.0))
        soak.bury(process)
        assert child.poll() is None
    soak.bury(psutil.Process(child.pid))
    assert child.wait(10) == -signal.SIGKILL
    soak.bury(process)  # it is gone


def test_the_report_tells_of_each_fault_as_the_run_told_it(tmp_path):
    told = [
        (100.0, "warning", {"message": "engine[1] is lost: it was killed\nA new process takes its place"}),
        (102.5, "warning", {"message": "engine[0] serves again, after 1.0 s"}),
        (109.0, "warning", {"message": "engine[1] serves again, after 9.0 s"}),
        (121.0, "warning", {"message": "gone\nThe training roles (policy, critic) start again (1 of 3 in a row)"}),
        (130.0, "run_started", {}),
        (140.0, "commit", {"step": 7}),
        (141.0, "commit", {"step": 8}),
    ]
    lines = [json.dumps({"time": at, "kind": kind} | fields) for at, kind, fields in told]
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-1" / "events.jsonl").write_text("\n".join(lines) + "\n")
    faults = [
        Fault("run-1", "SIGKILL", "role", 2, at=99.0),
        Fault("run-1", "SIGSTOP", "role", 5, at=111.0),
        Fault("run-1", "SIGKILL", "driver", 7, at=125.0),
    ]
    assert report(tmp_path, [("run-1", faults, "")], seed=4).splitlines() == [
        "# Soak, seed 4: 1 runs, 3 faults",
        "",
        "| run | fault | after step | of | noticed after | serving again after | lost |",
        "|---|---|---|---|---|---|---|",
        "| run-1 | SIGKILL | 2 | engine[1] | 1.0 s | 10.0 s | nothing |",
        "| run-1 | SIGSTOP | 5 | a training rank | 10.0 s | not before the run's end | nothing |",
        "| run-1 | SIGKILL | 7 | the driver | 5.0 s | 16.0 s | nothing |",
        "",
        "Every run ended well, and nothing was lost.",
    ]
