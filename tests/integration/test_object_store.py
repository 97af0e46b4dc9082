"""A run whose directory is in an object store: a real S3 server of this machine, asked through s3fs."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from online_runs import RECIPE, assert_same, trained_on

if importlib.util.find_spec("moto") is None:  # not imported here: see `served`
    pytest.skip("pip install 'rlpipe[dev]'", allow_module_level=True)
pytest.importorskip("s3fs", reason="pip install 'rlpipe[s3]'")

from object_store import served

from rlpipe.data import remote
from rlpipe.data.storage import Storage
from rlpipe.ledger.standing import standing
from rlpipe.observe.events import read
from rlpipe.pipelines import checkpoints
from rlpipe.pipelines.run import DONE, run
from rlpipe.pipelines.supervision import steps_done
from rlpipe.recipe.load import load

pytestmark = [pytest.mark.integration, pytest.mark.slow]

REWARD = """
import time

def share(completions, **columns):
    time.sleep(0.3)
    return [sum(c.isdigit() for c in text) / 6 for text in completions]
"""


@pytest.fixture(scope="module")
def bucket():
    with served("runs"):
        yield "s3://runs"


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "digits.py").write_text(REWARD)
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path / "small.yaml"


def metrics(url: str) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for event in read(Storage(url))[0]:
        if event["kind"] == "metrics" and event["step"]:
            found.setdefault(event["step"], {}).update(event["metrics"])
    return found


@pytest.mark.soak
def test_a_run_is_killed_and_resumed_on_another_machine(bucket, recipe, tmp_path, monkeypatch):
    """Another machine: one that has nothing of the run but the URL."""
    url, changes = f"{bucket}/killed", ["schedule.steps=6", "train.save_steps=2", "train.save_total_limit=1"]
    client = subprocess.Popen(
        [sys.executable, "-m", "rlpipe", "run", str(recipe), *changes, "--debug", "--run-dir", url],
        env=os.environ | {remote.WORK: str(tmp_path / "first")},
    )
    while steps_done(url) < 3 or not Storage(url).exists("checkpoints/step-000002/manifest.json"):
        assert client.poll() is None
        time.sleep(0.1)
    client.send_signal(signal.SIGKILL)
    client.wait()
    before = standing(Storage(url))

    monkeypatch.setenv(remote.WORK, str(tmp_path / "second"))
    assert run(load(recipe, changes), url, debug=True) == DONE
    after = standing(Storage(url))
    assert before.step >= 3 and after.step == 6 and after.totals["trained"] == 6 * 8
    brought = remote.work_folder(url)
    assert brought.is_relative_to(tmp_path / "second") and not Storage(url).exists(".lock")

    # Bit by bit what a run gives that nobody killed, in a folder.
    assert run(load(recipe, changes), tmp_path / "whole", debug=True) == DONE
    Storage(url).get_files({name: _made(tmp_path / "got" / name) for name in Storage(url).files("rollouts")})
    assert trained_on(tmp_path / "got") == trained_on(tmp_path / "whole")
    told, whole = metrics(url), metrics(str(tmp_path / "whole"))  # a kill takes events of its last seconds along
    assert {4, 5, 6} <= told.keys()
    assert_same(told, {step: whole[step] for step in told}, within=0.0)
    for name in ("model/model.safetensors", "checkpoints/step-000006/model/model.safetensors"):
        assert Storage(url).read(name) == (tmp_path / "whole" / name).read_bytes(), name
    assert Storage(url).names("checkpoints/*") == ["checkpoints/step-000006"]
    assert Storage(url).exists("report.html") and Storage(url).files("tensorboard")


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_only_whole_checkpoints_of_the_store_count(bucket, tmp_path):
    url, here = f"{bucket}/checkpoints", tmp_path / "here"
    remote.mark(here, url)
    for step in (2, 4):
        partial = here / "partial"
        partial.mkdir()
        (partial / "weights").write_text(f"of step {step}")
        checkpoints.commit(partial, here, step, keep=2)
    Storage(url).delete("checkpoints/step-000004/manifest.json")  # as if it had been killed before the last file
    there = tmp_path / "there"
    remote.mark(there, url)
    checkpoints.agree(there)
    assert checkpoints.last_step(there) == 2 and checkpoints.damage_of(checkpoints.newest(there)) == ""
    assert (checkpoints.newest(there) / "weights").read_text() == "of step 2"
    checkpoints.agree(here)  # what is here alone is of another life of the run
    assert [folder.name for folder in checkpoints.standing(here)] == ["step-000002"]


def test_an_earlier_run_in_the_store_is_left_alone(bucket, recipe, tmp_path, monkeypatch):
    Storage(f"{bucket}/used").write("recipe.yaml", b"task: rl\n")
    monkeypatch.setenv(remote.WORK, str(tmp_path / "work"))
    refused = subprocess.run(
        [sys.executable, "-m", "rlpipe", "run", str(recipe), "--debug", "--run-dir", f"{bucket}/used"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 2
    assert f"{bucket}/used holds an earlier run, which stays; `rlpipe resume {bucket}/used`" in refused.stderr


def test_a_store_of_no_known_kind_is_a_mistake(tmp_path, monkeypatch):
    monkeypatch.setenv(remote.WORK, str(tmp_path))
    with pytest.raises(remote.Unreachable, match="nosuch://bucket/run cannot be read: ValueError: Protocol not known"):
        remote.work_folder("nosuch://bucket/run")
