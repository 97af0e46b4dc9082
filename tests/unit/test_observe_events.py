"""events.jsonl: what is written is what is read, also after a kill, from several threads, and with bad numbers."""

import json
import math
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from rlpipe.data.storage import Storage
from rlpipe.observe import events, runinfo
from rlpipe.observe.events import EventLog


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path / "run")


def kinds(found):
    return [event["kind"] for event in found]


def test_events_are_read_back_as_written(storage):
    log = EventLog(storage, stage="grpo")
    log.run_started("rl", 2, {"recipe": {"seed": 0}, "versions": {}, "host": {}, "command": ["rlpipe"]})
    log.metrics(1, {"reward": 0.5, "loss": np.float32(0.25), "tokens": np.int64(7)})
    log.commit(1, version=1)
    log.run_finished("completed")
    log.close()
    found, torn = events.read(storage)
    assert torn == []
    assert kinds(found) == ["run_started", "metrics", "commit", "run_finished"]
    assert found[1] == {
        "time": found[1]["time"],
        "kind": "metrics",
        "stage": "grpo",
        "step": 1,
        "metrics": {"reward": 0.5, "loss": 0.25, "tokens": 7.0},
    }


def test_every_line_is_strict_json_and_nan_comes_back_as_a_number(storage):
    EventLog(storage).metrics(1, {"loss": math.nan, "reward": -math.inf})
    line = storage.read("events.jsonl").decode()
    assert json.loads(line, parse_constant=pytest.fail)["metrics"] == {"loss": "nan", "reward": "-inf"}
    metrics = events.read(storage)[0][0]["metrics"]
    assert math.isnan(metrics["loss"])
    assert metrics["reward"] == -math.inf


def test_phases_are_measured_nested_and_marked_when_they_raise(storage):
    log = EventLog(storage)
    with log.phase("publish", step=3), log.phase("verify", step=3, says="probing the engines"):
        pass
    with pytest.raises(KeyError), log.phase("train", step=4):
        raise KeyError
    found, _ = events.read(storage)
    assert [(e["kind"], e["phase"], e["parent"], e["says"]) for e in found[:4]] == [
        ("phase_started", "publish", None, "publish"),
        ("phase_started", "verify", "publish", "probing the engines"),
        ("phase", "verify", "publish", "probing the engines"),
        ("phase", "publish", None, "publish"),
    ]
    assert 0 <= found[2]["seconds"] <= found[3]["seconds"] < 1
    assert found[5]["error"] == "KeyError"
    assert "error" not in found[3]


def test_a_view_sees_every_event_and_one_that_raises_is_dropped_with_a_fault(storage):
    seen = []

    class Broken:
        def __call__(self, event):
            raise ConnectionError("no route to the tracker")

    log = EventLog(storage, views=[Broken(), seen.append])
    log.metrics(1, {"reward": 1.0})
    log.metrics(2, {"reward": 1.0})
    assert kinds(seen) == ["fault", "metrics", "metrics"]
    fault = events.read(storage)[0][1]
    assert fault["message"] == "Broken stopped: ConnectionError: no route to the tracker. The run goes on without it."
    assert fault["fatal"] is False


def test_threads_never_mix_their_lines(storage):
    log = EventLog(storage)
    text = "x" * 10_000
    threads = [threading.Thread(target=lambda n=n: [log.sample(n, text, str(i)) for i in range(20)]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, torn = events.read(storage)
    assert torn == []
    assert sorted((e["step"], int(e["completion"])) for e in found) == [(n, i) for n in range(4) for i in range(20)]


KILLED = """
import os, sys
from rlpipe.data.storage import Storage
from rlpipe.observe.events import EventLog
log = EventLog(Storage(sys.argv[1]))
for step in range(3):
    log.metrics(step, {"reward": 0.5})
log._file.write(b'{"time": 1, "kind": "metrics", "st\\xc3')
os.kill(os.getpid(), 9)
"""


def test_a_run_killed_in_the_middle_of_a_line_loses_that_line_alone_and_says_so(storage):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(storage)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert killed.returncode == -9
    found, torn = events.read(storage)
    assert [event["step"] for event in found] == [0, 1, 2]
    assert torn == ["events.jsonl line 4 is torn (35 bytes): the run was killed while writing it."]
    EventLog(storage).metrics(3, {"reward": 0.5})
    found, torn = events.read(storage)
    assert [event["step"] for event in found] == [0, 1, 2, 3]
    assert len(torn) == 1


def test_a_store_that_cannot_append_gets_the_whole_log_at_the_end():
    storage = Storage("memory://test-observe-events/run")
    for step in (1, 2):
        log = EventLog(storage)
        log.metrics(step, {"reward": 0.5})
        log.metrics(step, {"reward": 0.75})
        log.close()
    found, torn = events.read(storage)
    assert [(event["step"], event["metrics"]["reward"]) for event in found] == [
        (1, 0.5),
        (1, 0.75),
        (2, 0.5),
        (2, 0.75),
    ]
    assert torn == []


@pytest.mark.parametrize("url", ["disk", "memory://test-observe-storage/run"])
def test_storage_puts_lists_and_nests(url, tmp_path):
    storage = Storage(tmp_path / "a folder" if url == "disk" else url)
    storage.write("rollouts/step-000002.parquet", b"two")
    storage.write("rollouts/step-000001.parquet", b"one")
    storage.folder("rollouts").write("step-000001.parquet", b"one again")
    assert storage.names("rollouts/*.parquet") == ["rollouts/step-000001.parquet", "rollouts/step-000002.parquet"]
    assert storage.read("rollouts/step-000001.parquet") == b"one again"
    assert not storage.exists("rollouts/step-000003.parquet")
    with pytest.raises(FileNotFoundError):
        storage.read("rollouts/step-000003.parquet")
    assert (storage.local is not None) == (url == "disk")


def test_run_information_names_the_stack_and_hides_credentials():
    info = runinfo.collect({"data": {"path": "s3://key:secret@bucket/x"}, "seed": 1})
    assert info["recipe"]["seed"] == 1
    assert "secret" not in json.dumps(info["recipe"])
    assert set(info["versions"]) == {
        "python", "rlpipe", "torch", "vllm", "ray", "deepspeed", "transformers", "trl", "peft",
    }  # fmt: skip
    assert info["versions"]["ray"].startswith("2.")
    assert info["host"]["cores"] >= 1


def test_progress_is_shown_and_not_written(storage):
    seen = []
    log = EventLog(storage, stage="grpo", views=[seen.append])
    log.progress("120/512")
    log.warning("written")
    assert [(event["kind"], event["stage"]) for event in seen] == [("progress", "grpo"), ("warning", "grpo")]
    assert [event["kind"] for event in events.read(storage)[0]] == ["warning"]
