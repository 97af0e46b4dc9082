"""Checkpoints are whole or not there; a stage that ended early knows where it stands."""

import json
import logging
import os

import pytest

from rlpipe.data.storage import Storage
from rlpipe.observe.events import EventLog
from rlpipe.pipelines import checkpoints, resuming
from rlpipe.pipelines.sole import Taken, alone_in
from rlpipe.recipe.load import load


def filled(directory, text="weights"):
    partial = directory / "checkpoints" / ".partial" / "checkpoint"
    (partial / "model").mkdir(parents=True)
    (partial / "model" / "weights.bin").write_text(text)
    (partial / "state.json").write_text("{}")
    return partial


def commit(directory, step, keep=2, text="weights"):
    checkpoints.commit(filled(directory, text), directory, step, keep)


def steps(directory):
    return sorted(folder.name for folder in (directory / "checkpoints").glob("step-*"))


def test_a_checkpoint_is_sealed_and_only_the_last_ones_stay(tmp_path):
    for step in (5, 10, 100):
        commit(tmp_path, step, text=f"weights of {step}")
    assert steps(tmp_path) == ["step-000010", "step-000100"]
    folder = checkpoints.newest(tmp_path)
    assert (folder.name, checkpoints.last_step(tmp_path)) == ("step-000100", 100)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["step"] == 100
    assert manifest["files"]["model/weights.bin"] == {
        "bytes": 14,
        # printf 'weights of 100' | sha256sum
        "sha256": "6e61804b9600555cd43270221d435224887b3de3d818fb56e10f81c7eb5a21d1",
    }
    assert list(manifest["files"]) == ["model/weights.bin", "state.json"]


def test_without_any_there_is_none(tmp_path):
    checkpoints.set_damaged_aside(tmp_path)
    assert (checkpoints.newest(tmp_path), checkpoints.last_step(tmp_path)) == (None, 0)


def test_what_was_being_written_when_the_run_was_killed_is_no_checkpoint(tmp_path):
    commit(tmp_path, 5)
    filled(tmp_path)
    assert checkpoints.last_step(tmp_path) == 5


def test_a_step_that_is_done_again_has_one_checkpoint(tmp_path):
    commit(tmp_path, 5, text="before")
    commit(tmp_path, 5, text="again")
    assert steps(tmp_path) == ["step-000005"]
    assert (checkpoints.newest(tmp_path) / "model/weights.bin").read_text() == "again"


DAMAGE = {
    "other contents": lambda folder: (folder / "model/weights.bin").write_text("WEIGHTS"),
    "has 4 bytes instead of 7": lambda folder: (folder / "model/weights.bin").write_text("weig"),
    "state.json is missing": lambda folder: (folder / "state.json").unlink(),
    "manifest.json cannot be read": lambda folder: (folder / "manifest.json").write_text('{"step'),
}


@pytest.mark.parametrize("says", DAMAGE)
def test_a_damaged_one_is_named_and_the_one_before_it_is_used(tmp_path, caplog, says):
    commit(tmp_path, 5)
    commit(tmp_path, 10)
    DAMAGE[says](checkpoints.newest(tmp_path))
    with caplog.at_level(logging.WARNING, "rlpipe"):
        checkpoints.set_damaged_aside(tmp_path)
    assert checkpoints.last_step(tmp_path) == 5
    [message] = caplog.messages
    assert "step-000010 is damaged" in message
    assert says in message
    assert (tmp_path / "checkpoints" / "damaged-step-000010").is_dir()  # nothing is thrown away


def stage(directory, *ends):
    log = EventLog(Storage(directory))
    for end in ends:
        log.run_started("sft", 5, {"recipe": {}})
        if end:
            log.run_finished(end)
    log.close()
    (directory / "model").mkdir()


@pytest.mark.parametrize(
    ("ends", "finished"),
    [
        (["completed"], True),
        (["failed", "completed"], True),
        (["completed", None], False),
        ([None], False),
        (["failed"], False),
        (["interrupted"], False),
    ],
)
def test_a_stage_is_finished_when_its_last_life_completed(tmp_path, ends, finished):
    stage(tmp_path, *ends)
    assert resuming.finished(tmp_path) is finished


def test_a_stage_whose_result_is_gone_is_not_finished(tmp_path):
    stage(tmp_path, "completed")
    (tmp_path / "model").rmdir()
    assert not resuming.finished(tmp_path)


def test_what_an_rl_stage_had_done_is_moved_aside_and_kept(tmp_path):
    stage(tmp_path, "failed")
    (tmp_path / "recipe.yaml").write_text("task: rl")
    recipe = load("arithmetic/grpo", ["model={scratch: qwen2}"])
    assert resuming.make_room(recipe, tmp_path) == tmp_path / "set-aside" / "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "set-aside"]
    assert sorted(path.name for path in (tmp_path / "set-aside" / "1").iterdir()) == ["events.jsonl", "model"]
    assert resuming.make_room(recipe, tmp_path) is None  # nothing is left to move


def test_an_offline_stage_keeps_what_it_goes_on_from(tmp_path):
    stage(tmp_path, "failed")
    assert resuming.make_room(load("arithmetic/sft"), tmp_path) is None
    assert (tmp_path / "events.jsonl").is_file()


def test_two_processes_do_not_work_in_one_directory(tmp_path):
    with alone_in(tmp_path), pytest.raises(Taken, match=f"process {os.getpid()}"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):  # free again
        pass
