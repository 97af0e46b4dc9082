"""Offline training that loses a process: from where it starts again, how often, and what is told of it."""

import logging
from pathlib import Path

import pytest

from rlpipe.data.records import DataError
from rlpipe.pipelines import checkpoints
from rlpipe.pipelines.offline.restarts import to_the_end
from rlpipe.pipelines.offline.sft_worker import SftJob
from rlpipe.recipe.training import SftTraining
from rlpipe.runtime import backoff
from rlpipe.runtime.handle import DeadlineExceeded, GivenUp, NotStarted, RoleDied
from rlpipe.runtime.roles import PlacementError


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    monkeypatch.setattr(backoff, "FIRST_REST_SECONDS", 0.0)


@pytest.fixture
def job(tmp_path):
    unused = dict.fromkeys(["model", "model_path", "tokenizer", "train", "heldout", "adapter", "checkpoint"])
    paths = {"output_dir": "-", "adapter_dir": "-", "directory": str(tmp_path)}
    training = SftTraining(max_steps=9, max_restarts=2, save_steps=10)
    return SftJob(**unused, **paths, seed=0, timeout_seconds=1.0, max_length=8, training=training)


class Attempts:
    """Each reports its steps, and ends with its error, if it has one."""

    def __init__(self, *attempts):
        self._attempts = iter(attempts)
        self.began_from = []

    def __call__(self, job, report):
        self.began_from.append(job.checkpoint and job.checkpoint.rpartition("/")[2])
        steps, error = next(self._attempts)
        for step in steps:
            report(step, {"loss": float(step)})
        if error is not None:
            raise error


def train(job, *attempts):
    """From where each attempt began, and what was reported."""
    made, told = Attempts(*attempts), []
    to_the_end("SFT", job, made, lambda step, values: told.append((step, values)))
    return made.began_from, told


def checkpoint(job, step):
    folder = checkpoints.place(Path(job.directory), step).with_name("partial")
    folder.mkdir(parents=True)
    (folder / "weights").write_text(f"of step {step}")
    checkpoints.commit(folder, Path(job.directory), step, keep=5)
    return checkpoints.place(Path(job.directory), step)


def test_steps_that_are_done_again_are_told_once(job):
    began, told = train(job, ([1, 2, 3], RoleDied("killed")), ([1, 2, 3, 4], DeadlineExceeded("hung")), ([4, 5], None))
    assert began == [None, None, None]
    assert told == [(step, {"loss": float(step)}) for step in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize("fault", [NotStarted("not there in time"), PlacementError("no room")])
def test_a_first_start_that_fails_is_told_at_once_and_a_later_one_is_one_loss_more(job, fault):
    made = Attempts(([], fault))
    with pytest.raises(type(fault)):
        to_the_end("SFT", job, made, lambda step, values: None)
    assert made.began_from == [None]
    began, told = train(job, ([1, 2], RoleDied("killed")), ([], fault), ([3], None))
    assert began == [None] * 3 and [step for step, _ in told] == [1, 2, 3]


def test_other_figures_of_a_step_that_was_told_are_told_too(job):
    told, lives = [], iter([False, True])

    def dies_before_the_evaluation(job, report):
        report(5, {"loss": 0.5})
        if not next(lives):
            raise RoleDied("killed")
        report(5, {"heldout_loss": 0.7})

    to_the_end("SFT", job, dies_before_the_evaluation, lambda *what: told.append(what))
    assert told == [(5, {"loss": 0.5}), (5, {"heldout_loss": 0.7})]


def test_it_goes_on_from_the_newest_whole_checkpoint(job, caplog):
    checkpoint(job, 10)
    (checkpoint(job, 20) / "weights").write_text("of no step")  # as long, and other contents
    with caplog.at_level(logging.WARNING):
        began, _ = train(job, ([25], RoleDied("Rank 1 of SFT training died")), ([30], None))
    assert began == [None, "step-000010"]
    assert "step-000020 is damaged and not used: weights has" in caplog.text
    again = "Rank 1 of SFT training died\nSFT training starts again (1 of 2 in a row), from the checkpoint step-000010."
    assert again in caplog.text


def test_without_a_step_in_between_it_is_given_up_and_the_last_fault_named(job):
    attempts = [([4], RoleDied("first")), ([2], RoleDied("second")), ([4], RoleDied("third"))]
    said = r"^SFT training was lost 3 times without a step in between; train.max_restarts is 2. The last fault: third$"
    with pytest.raises(GivenUp, match=said):
        train(job, *attempts)


def test_a_step_in_between_begins_the_count_anew(job):
    fault = RoleDied("again")
    began, _ = train(job, *[([step], fault) for step in (1, 1, 2, 2, 3)], ([9], None))
    assert len(began) == 6


@pytest.mark.parametrize("fault", [DataError("d.jsonl, line 7"), ValueError("of code"), PlacementError("no room")])
def test_a_fault_that_would_come_again_is_not_tried_again(job, fault):
    with pytest.raises(type(fault), match=str(fault)):
        train(job, ([1], fault), ([9], None))


def test_room_that_is_missing_after_a_loss_is_waited_for(job):
    began, _ = train(job, ([1], RoleDied("its node is gone")), ([], PlacementError("no room")), ([9], None))
    assert len(began) == 3
