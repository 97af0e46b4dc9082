"""When a driver is tried again, and when not."""

import multiprocessing
import os
import signal
import subprocess
from pathlib import Path

import pytest

from rlpipe.data.records import DataError
from rlpipe.data.storage import Storage
from rlpipe.pipelines import supervision
from rlpipe.pipelines.run import is_mendable
from rlpipe.pipelines.supervision import Ended, steps_done, supervise
from rlpipe.rewards.stage import RewardFailed
from rlpipe.runtime.handle import DeadlineExceeded, GivenUp, RoleDied
from rlpipe.runtime.roles import PlacementError


@pytest.fixture
def rests(monkeypatch):
    """Seconds of the rests that are made, without making them."""
    made = []
    monkeypatch.setattr(supervision.time, "sleep", made.append)
    return made


def played(ends: list[Ended], steps: list[int], most: int) -> tuple[int, list[str], int]:
    """The exit code, what is said, and how many attempts were not made."""
    said: list[str] = []
    code = supervise(lambda: ends.pop(0), lambda: steps.pop(0), most, said.append)
    return code, said, len(ends)


LOST = Ended(1, "killed by SIGKILL")


def test_a_lost_driver_is_tried_again_after_a_rest_that_doubles(rests):
    code, said, left = played([LOST, LOST, LOST, Ended(0)], [4, 4, 4], 3)
    assert (code, left, rests) == (0, 0, [1, 2, 4])
    assert said[1] == (
        "The driver was lost: killed by SIGKILL. It resumes from the run directory in 2 s (2 of 3 in a row)."
    )


def test_a_step_in_between_begins_the_count_anew(rests):
    code, _, left = played([LOST, LOST, LOST, LOST, Ended(0)], [0, 5, 5, 9], 2)
    assert (code, left, rests) == (0, 0, [1, 1, 2, 1])


def test_after_too_many_it_gives_up_and_names_the_fault(rests):
    code, said, left = played([LOST, LOST, Ended(1, "engine[0] died"), Ended(0)], [7, 7, 7], 2)
    assert (code, left, rests) == (1, 1, [1, 2])
    assert said[-1] == (
        "The driver was lost 3 times without a step in between; --max-retries is 2. The last fault: engine[0] died"
    )


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_what_ended_for_good_is_not_tried_again(rests, code):
    assert played([Ended(code), Ended(0)], [], 3) == (code, [], 1)


def test_no_retries(rests):
    assert played([LOST], [0], 0)[0] == 1 and rests == []


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (RoleDied("engine[0] died"), True),
        (DeadlineExceeded("waited"), True),
        (GivenUp("lost three times"), True),
        (PlacementError("no room"), True),
        (ConnectionError("the head does not answer"), True),
        (OSError("input/output error"), True),
        (DataError("row 3"), False),
        (RewardFailed("the reward failed"), False),
        (KeyError("answer"), False),
        (PermissionError("access denied"), False),
        (FileNotFoundError("model"), False),
    ],
)
def test_what_may_be_mended_by_trying_again(error, again):
    assert is_mendable(error) is again


def test_a_killed_process_says_nothing_and_is_told_of_by_its_signal():
    ours, theirs = multiprocessing.Pipe(duplex=False)
    theirs.close()
    assert supervision._ended(-signal.SIGKILL, ours) == Ended(1, "killed by SIGKILL")


def test_sigterm_goes_to_the_driver_and_is_remembered():
    driver = subprocess.Popen(["sleep", "60"])
    with supervision._Stopping() as stopping:
        stopping.pass_on_to(driver.pid)
        os.kill(os.getpid(), signal.SIGTERM)
        assert driver.wait(10) == -signal.SIGTERM
    assert stopping.asked


def test_durable_steps_of_all_stages(tmp_path: Path):
    assert steps_done(str(tmp_path)) == 0
    run = Storage(tmp_path)
    for name in ("sft/checkpoints/step-000005", "sft/checkpoints/step-000010", "dpo/checkpoints/step-000002"):
        run.write(f"stages/{name}/manifest.json", b"{}")
    (tmp_path / "stages/dpo/checkpoints/step-000004").mkdir()  # no manifest: not whole
    assert steps_done(str(tmp_path)) == 12
