"""Checkpoints are whole or not there; a stage that ended early knows where it stands."""

import json
import logging
import os
import re

import pytest

from rlpipe.data.storage import Storage
from rlpipe.observe.events import EventLog
from rlpipe.pipelines import checkpoints, resuming
from rlpipe.pipelines.sole import Taken, alone_in
from rlpipe.recipe.load import load
from rlpipe.recipe.resolved import to_yaml
from rlpipe.training.checkpoint import CheckpointMismatch


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


def test_one_can_be_spared(tmp_path):
    for step in (5, 10, 15):
        checkpoints.commit(filled(tmp_path), tmp_path, step, keep=1, spared=5)
    assert steps(tmp_path) == ["step-000005", "step-000015"]
    (tmp_path / "checkpoints/step-000005/state.json").unlink()
    with pytest.raises(CheckpointMismatch, match=r"step-000005 is the best .* damaged: state\.json is missing"):
        checkpoints.require_whole(tmp_path / "checkpoints/step-000005")


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


def begun(directory, stage=""):
    """A run of RL that has a ledger, of this recipe."""
    (directory / stage / "ledger").mkdir(parents=True)
    name = "arithmetic/pipeline" if stage else "arithmetic/grpo"
    recipe = load(name)
    (directory / "recipe.yaml").write_text(to_yaml(recipe))
    return lambda *changes: resuming.refuse_changes(load(name, changes), directory)


@pytest.mark.parametrize(
    ("stage", "change", "says"),
    [
        ("", "algorithm.group_size=4", "algorithm.group_size was 8 when {} began, and is 4 now"),
        ("", "adapter={kind: lora}", "adapter was None when {} began, and is {{'kind': 'lora'"),
        ("stages/grpo", "stages.grpo.seed=7", "stages.grpo.seed was 0 when {}/stages/grpo began, and is 7 now"),
    ],
)
def test_what_the_stored_steps_hang_on_cannot_change(tmp_path, stage, change, says):
    again = begun(tmp_path, stage)
    with pytest.raises(CheckpointMismatch, match=re.escape(says.format(tmp_path))):
        again(change)


def test_the_rest_can_and_so_can_stages_that_have_not_begun(tmp_path):
    begun(tmp_path)("schedule.steps=7", "train.optimizer.learning_rate=3e-5")
    begun(tmp_path / "pipeline", "stages/grpo")("stages.sft.seed=7")
    (tmp_path / "fresh").mkdir()
    resuming.refuse_changes(load("arithmetic/grpo"), tmp_path / "fresh")


def test_another_layout_of_processes_is_refused_by_its_key(tmp_path):
    checkpoints.check_layout(tmp_path, {"train.ranks": 2}, {"train.ranks": 2, "critic.ranks": 4})
    with pytest.raises(CheckpointMismatch, match=r"with critic\.zero_stage=2, and critic\.zero_stage=0 cannot"):
        checkpoints.check_layout(tmp_path, {"critic.zero_stage": 2}, {"critic.zero_stage": 0})
    with pytest.raises(CheckpointMismatch, match=r"resume with train\.ranks=2 and without --debug, which has one"):
        checkpoints.check_layout(tmp_path, {"train.ranks": 2}, {"train.ranks": 1})


def test_two_processes_do_not_work_in_one_directory(tmp_path):
    with alone_in(tmp_path), pytest.raises(Taken, match=f"process {os.getpid()}"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):  # free again
        pass
