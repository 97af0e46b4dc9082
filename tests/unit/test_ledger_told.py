"""What `rlpipe ledger` says of a run, while it goes on and afterwards."""

import re

import pytest
from sample_groups import CyclingCursor, answer
from typer.testing import CliRunner

from rlpipe.cli import app
from rlpipe.data.flow import Failure
from rlpipe.data.storage import Storage
from rlpipe.ledger import history
from rlpipe.ledger.ledger import Ledger


@pytest.fixture
def run_dir(tmp_path):
    """Two steps: four trained, one failed, one dropped; then one completed, one leased, one whose lease has ended."""
    with Ledger(Storage(tmp_path), CyclingCursor(), ["right"], lease_seconds=3600.0) as ledger:
        ledger.append([answer(lease, "a", "abc") for lease in ledger.lease(3)])
        ledger.take(3)
        ledger.drop(["e0/p1"], "no signal: its rewards are all equal")
        ledger.commit(1)
        first, second, third = ledger.lease(3)
        broken = Failure("deadline", "right: late")
        ledger.append([answer(first, "ab"), answer(second), answer(third, "a", "b", outcomes=(broken, broken))])
        ledger.take(3)
        ledger.commit(2)
        done, _ = ledger.lease(2)
        ledger.append([answer(done)])
        ledger._lease_seconds = -1.0
        ledger.lease(3)
        yield tmp_path


def told(*arguments):
    done = CliRunner().invoke(app, ["ledger", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return re.sub(r" +", " ", done.output).replace(" \n", "\n")


def test_prompts_are_counted_by_state_and_epoch(run_dir):
    said = told(run_dir)
    assert "2 steps committed" in said
    assert "epoch pending leased completed trained failed dropped\n" in said
    assert " 0 0 0 0 2 0 1\n" in said
    assert " 1 0 0 0 2 1 0\n" in said
    assert " 2 1 1 1 0 0 0\n" in said
    assert " all 1 1 1 4 1 1\n" in said


def test_steps_are_listed(run_dir):
    said = told(run_dir)
    assert "step trained failed dropped responses without reward reward\n" in said
    assert " 1 2 0 1 6 0 2.000\n" in said, "of rewards 1 and 3 in each group"
    assert " 2 2 1 0 4 2 1.500\n" in said, "a group without a reward is in no mean"
    assert " 1 2 0 1 6 0 2.000\n" not in told(run_dir, "--steps", 1)


def test_what_happened_to_a_prompt_is_told(run_dir):
    assert told(run_dir, "--prompt", "p1").splitlines() == [
        "epoch 0 dropped in step 1, group e0/p1: 2 responses, mean reward 2.000 (no signal: its rewards are all equal)",
        "epoch 1 trained in step 2, group e1/p1: 1 responses, mean reward 1.000",
        told(run_dir, "--prompt", "p1").splitlines()[2],
    ]
    assert re.search(r"epoch 2 leased as e2/p1, for another 3\d\d\d s", told(run_dir, "--prompt", "p1"))
    assert told(run_dir, "--prompt", "p0").endswith("epoch 2 completed as group e2/p0, waiting for its step\n")
    last = told(run_dir, "--prompt", "p2").splitlines()[1:]
    assert last == [
        "epoch 1 failed in step 2, group e1/p2: 2 responses, 2 without reward (no reward: right: late)",
        "epoch 2 pending: nobody works on it; leased 1 times so far",
    ]
    assert told(run_dir, "--prompt", "p9") == "p9: not handed out until now, or no prompt of this run\n"


@pytest.mark.parametrize("harm", ["gone", "damaged", "of another version"])
def test_the_index_is_made_again(run_dir, harm):
    before, index = told(run_dir, "--prompt", "p0"), run_dir / history.NAME
    assert index.exists()
    if harm == "damaged":
        index.write_bytes(b"no database" * 1000)
    else:
        index.unlink()
    if harm == "of another version":
        import sqlite3

        with sqlite3.connect(index) as database:
            database.execute("create table settled (step, place)")
    assert told(run_dir, "--prompt", "p0") == before


def test_the_index_takes_in_what_is_new(run_dir):
    told(run_dir)
    with Ledger(Storage(run_dir), CyclingCursor(), ["right"], 3600.0) as ledger:
        ledger.append([answer(lease, "abcd") for lease in ledger.lease(3)])
        ledger.take(3)
        ledger.commit(3)
    assert " 3 3 0 0 3 0 3.000\n" in told(run_dir), "of rewards 1, 4 and 4"


def test_stages_have_ledgers_of_their_own(tmp_path):
    for stage in ("one", "two"):
        with Ledger(Storage(tmp_path / "stages" / stage), CyclingCursor(), ["right"], 3600.0) as ledger:
            ledger.lease(1)
    assert told(tmp_path).count("0 steps committed") == 2


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_a_ledger_is_a_mistake(tmp_path, there):
    done = CliRunner().invoke(app, ["ledger", str(tmp_path if there else tmp_path / "none")])
    assert done.exit_code == 2
    assert ("has no ledger" if there else "no run directory") in done.output


def test_a_damaged_step_is_named(run_dir):
    (run_dir / "rollouts" / "step-000001.parquet").write_bytes(b"PAR1 no PAR1")
    done = CliRunner().invoke(app, ["ledger", str(run_dir)])
    assert done.exit_code == 2 and "rollouts/step-000001.parquet is damaged" in done.output
