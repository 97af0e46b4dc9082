"""The online loop as a user runs it: the same numbers wherever it runs, and a stop that says why when it must stop."""

import functools
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from online_runs import RECIPE, REWARD, assert_same, events, train, trained_on

from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.pipelines.run import FAILED, INTERRUPTED, run
from rlpipe.recipe.algorithm import PRESETS
from rlpipe.recipe.load import load
from rlpipe.rollout.pool import EnginePool
from rlpipe.rollout.transformers_engine import TransformersEngine
from rlpipe.runtime import backoff
from rlpipe.runtime.handle import RoleDied, Within
from rlpipe.training.critic import Critic
from rlpipe.training.policy import Policy

pytestmark = pytest.mark.integration


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    (tmp_path / "digits.py").write_text(REWARD)
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory) -> tuple[Path, dict]:
    """The recipe as it stands, in this process."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "digits.py").write_text(REWARD)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder, train(folder / "recipe.yaml", folder / "run")


def test_a_step_is_on_policy_and_learns(plain_run):
    _, metrics = plain_run
    assert list(metrics) == [1, 2, 3]
    for step in metrics.values():
        assert step["mismatch/abs"] < 1e-4, "float32: engine and trainer agree"
        assert step["ratio"] == pytest.approx(1.0, abs=1e-6), "one update per batch is on-policy"
        assert step["tokens"] == pytest.approx(step["response_length"] * 32)
    assert metrics[3]["reward"] > metrics[1]["reward"], "digits are easy to learn at this rate"


def test_every_trajectory_is_kept_with_its_version(plain_run):
    folder, metrics = plain_run
    for step in metrics:
        rows = pq.read_table(folder / "run" / "rollouts" / f"step-{step:06d}.parquet").to_pylist()
        assert len(rows) == 8 * 4
        assert all(row["versions"] == [{"first_token": 0, "version": step - 1}] for row in rows)
        assert sum(row["reward"] for row in rows) / 32 == pytest.approx(metrics[step]["reward"], abs=1e-6)


def test_no_prompt_is_trained_twice_in_an_epoch(plain_run):
    folder, metrics = plain_run
    files = [folder / "run" / "rollouts" / f"step-{step:06d}.parquet" for step in metrics]
    prompts = [{row["prompt_id"] for row in pq.read_table(file).to_pylist()} for file in files]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 24


def test_the_result_is_a_plain_model_that_has_learned(plain_run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = plain_run
    model, base = (AutoModelForCausalLM.from_pretrained(folder / "run" / name) for name in ("model", "base"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "run" / "model")
    assert tokenizer.chat_template
    moved = max((a - b).abs().max() for a, b in zip(model.parameters(), base.parameters(), strict=True))
    assert moved > 1e-3


def test_ray_gives_the_same_numbers_as_debug(plain_run, recipe_file, tmp_path, ray_cluster):
    assert_same(plain_run[1], train(recipe_file, tmp_path / "ray", debug=False), within=1e-6)


def test_two_engines_and_two_ranks_give_the_same_numbers(plain_run, recipe_file, tmp_path, ray_cluster):
    changes = ("rollout.engines=2", "train.ranks=2", "train.zero_stage=2", "train.tokens_per_micro_batch=128")
    assert_same(plain_run[1], train(recipe_file, tmp_path / "ray", *changes, debug=False), within=1e-5)


def test_kl_to_the_reference_begins_at_zero_and_grows(recipe_file, tmp_path):
    metrics = train(recipe_file, tmp_path / "run", "algorithm.kl.coefficient=0.1")
    assert metrics[1]["reference_kl"] == pytest.approx(0.0, abs=1e-6)
    assert metrics[3]["reference_kl"] > 1e-4


def test_several_updates_per_batch_leave_the_policy_that_sampled(recipe_file, tmp_path):
    metrics = train(recipe_file, tmp_path / "run", "train.minibatches=2", "train.epochs=2")
    assert metrics[1]["policy_kl"] > 1e-5, "later updates are off-policy by what earlier ones changed"
    assert metrics[1]["mismatch/abs"] < 1e-4, "the mismatch is measured before the first update"


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"ppo"}))
def test_every_preset_without_a_critic_runs(recipe_file, tmp_path, name):
    metrics = train(recipe_file, tmp_path / "run", f"algorithm.name={name}", "schedule.steps=2")
    algorithm = load(recipe_file, [f"algorithm.name={name}"]).algorithm
    for step in metrics.values():
        assert all(math.isfinite(value) for value in step.values())
        assert step.get("kl_coefficient", 0.0) == algorithm.kl.coefficient
        assert ("reference_kl" in step) == algorithm.needs_reference
    assert metrics[1]["grad_norm"] > 0 and metrics[1]["ratio"] == pytest.approx(1.0, abs=1e-4)


SOME_FLAT = """
def share(prompts, completions, **columns):
    flat = [sum(map(ord, prompt)) % 2 for prompt in prompts]
    return [0.5 if f else sum(c.isdigit() for c in text) / 6 for f, text in zip(flat, completions)]
"""


def test_groups_without_signal_are_replaced_and_none_is_lost(recipe_file, tmp_path):
    (tmp_path / "digits.py").write_text(SOME_FLAT)
    metrics = train(recipe_file, tmp_path / "run", "algorithm.dynamic_sampling={max_rounds: 20}", "schedule.steps=2")
    everything = []
    for step, found in metrics.items():
        rows = pq.read_table(tmp_path / "run" / "rollouts" / f"step-{step:06d}.parquet").to_pylist()
        dropped = int(found["groups_dropped"])
        assert len({row["group_id"] for row in rows}) == 8 + dropped > 8
        assert all(row["advantage"] == 0.0 for row in rows[8 * 4 :])
        assert found["groups_without_signal"] == pytest.approx(dropped / (8 + dropped))
        everything += {row["prompt_id"] for row in rows}
    assert len(everything) == len(set(everything)), "in one epoch no prompt comes twice"


def test_a_step_that_finds_no_signal_says_so_and_goes_on(recipe_file, tmp_path):
    (tmp_path / "digits.py").write_text("def share(completions, **columns):\n    return [1.0] * len(completions)\n")
    changes = ("algorithm.dynamic_sampling={max_rounds: 1}", "schedule.steps=1")
    metrics = train(recipe_file, tmp_path / "run", *changes)
    assert metrics[1]["groups_dropped"] == 8 and metrics[1]["grad_norm"] == 0.0
    assert any("8 of 8 groups still have equal rewards" in e["message"] for e in events(tmp_path / "run", "warning"))


def test_an_engine_that_ignores_its_weights_stops_the_run(recipe_file, tmp_path, monkeypatch, capsys):
    # The bytes arrive and are acknowledged with the right digest; the engine just goes on with its old weights.
    monkeypatch.setattr(TransformersEngine, "_load", lambda self, payload: None)
    assert run(load(recipe_file), tmp_path / "run", debug=True) == FAILED
    said = capsys.readouterr().out
    assert "WeightSyncError" in said or "engine, weight version 1" in said
    [fault] = events(tmp_path / "run", "fault")
    assert fault["fatal"] and "weight version 1" in fault["message"]
    assert [event["step"] for event in events(tmp_path / "run", "commit")] == [], "no step counts on such weights"


def test_failing_rewards_stop_the_run_with_an_example(recipe_file, tmp_path, capsys):
    fails = "def share(completions, **columns):\n    raise ZeroDivisionError('by design')\n"
    (tmp_path / "digits.py").write_text(fails)
    assert run(load(recipe_file), tmp_path / "run", debug=True) == FAILED
    said = capsys.readouterr().out
    assert "rewards.max_failure_rate" in said and "by design" in said and "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "engines"), [("SIGKILL", 1), ("SIGSTOP", 2)])
def test_a_run_goes_on_when_an_engine_dies_or_hangs_as_if_nothing_had_happened(
    fault, engines, plain_run, recipe_file, tmp_path, ray_cluster, monkeypatch
):
    struck = strike_in_step(2, signal.Signals[fault], monkeypatch)
    changes = (f"rollout.engines={engines}", "deadlines.heartbeat=10")
    metrics = train(recipe_file, tmp_path / "run", *changes, debug=False)
    assert_same(metrics, plain_run[1], within=1e-5)
    assert trained_on(tmp_path / "run") == trained_on(plain_run[0] / "run")
    said = [event["message"] for event in events(tmp_path / "run", "warning")]
    assert len(struck) == 1
    _wait_for(lambda: not psutil.pid_exists(struck[0]), seconds=20)
    assert sum("is lost" in line for line in said) == 1
    # Beside another engine the run may be over before the new one is ready.
    assert engines == 2 or sum("serves again" in line for line in said) == 1


def strike_in_step(version: int, fault: signal.Signals, monkeypatch) -> list[int]:
    """The process of an engine gets `fault` once it has work for the weights of that version; its id is filed."""
    struck: list[int] = []
    look = EnginePool._look

    def look_and_strike(pool, *arguments):
        seat = pool._seats["policy"][0]
        if not struck and seat.groups and pool._published["policy"].version >= version:
            struck.append(seat.handle.pulse(Within("heartbeat", 10)).result())
            os.kill(struck[0], fault)
        return look(pool, *arguments)

    monkeypatch.setattr(EnginePool, "_look", look_and_strike)
    return struck


DIES_AT = {"train": (Policy, "update"), "publish": (Policy, "probe"), "critic": (Critic, "update")}


@pytest.mark.parametrize(
    ("where", "changes"),
    [
        ("train", ()),
        ("publish", ("train.save_steps=1",)),
        ("critic", ("algorithm={name: ppo}", "train.minibatches=2", "train.save_steps=1", "train.save_total_limit=1")),
    ],
    ids=["train", "publish", "critic"],
)
def test_training_roles_that_are_lost_start_again_as_if_nothing_had_happened(
    where, changes, recipe_file, tmp_path, monkeypatch
):
    expected = train(recipe_file, tmp_path / "whole", *changes)
    role, method = DIES_AT[where]
    real, calls = getattr(role, method), []

    @functools.wraps(real)
    def dies_once(self, *arguments):
        calls.append(method)
        if len(calls) == 3:  # in step 2 or 3, some of whose work is done
            raise RoleDied("killed by the test", "policy")
        return real(self, *arguments)

    monkeypatch.setattr(role, method, dies_once)
    metrics = train(recipe_file, tmp_path / "run", *changes)
    assert_same(metrics, expected, within=0.0)
    assert trained_on(tmp_path / "run") == trained_on(tmp_path / "whole")
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "whole")
    said = [event["message"] for event in events(tmp_path / "run", "warning")]
    assert sum("start again (1 of 3 in a row)" in line for line in said) == 1


def test_training_roles_that_are_lost_again_and_again_end_the_run(recipe_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backoff, "FIRST_REST_SECONDS", 0.01)

    @functools.wraps(Policy.update)
    def dies(self, *arguments):
        raise RoleDied("killed by the test", "policy")

    monkeypatch.setattr(Policy, "update", dies)
    assert run(load(recipe_file, ["train.max_restarts=2"]), tmp_path / "run", debug=True) == FAILED
    said = " ".join(capsys.readouterr().out.split())
    assert "lost 3 times without a step in between; train.max_restarts is 2. The last fault: killed by the test" in said


def test_an_error_of_a_role_that_lives_is_not_tried_again(recipe_file, tmp_path, monkeypatch):
    @functools.wraps(Policy.update)
    def wrong(self, *arguments):
        raise ValueError("wrong by design")

    monkeypatch.setattr(Policy, "update", wrong)
    with pytest.raises(ValueError, match="wrong by design"):
        run(load(recipe_file), tmp_path / "run", debug=True)
    assert not [e for e in events(tmp_path / "run", "warning") if "start again" in e["message"]]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["SIGKILL", "SIGSTOP"])
def test_a_rank_that_dies_or_hangs_takes_its_gang_along_and_the_run_goes_on(
    fault, plain_run, recipe_file, tmp_path, ray_cluster, monkeypatch
):
    struck: list[int] = []
    call, updates = Trainer._call, []

    def call_and_strike(trainer, role, method, shards):
        """In the middle of the third step's update."""
        rank = trainer._roles["policy"][1]
        pulse = rank.pulse(Within("heartbeat", 10))
        calls = call(trainer, role, method, shards)
        updates.extend([role] if method is Policy.update else [])
        if len(updates) == 3 and not struck:
            struck.append(pulse.result())
            os.kill(struck[0], signal.Signals[fault])
        return calls

    monkeypatch.setattr(Trainer, "_call", call_and_strike)
    changes = ("train.ranks=2", "train.zero_stage=2", "train.save_steps=1", "deadlines.heartbeat=10")
    metrics = train(recipe_file, tmp_path / "run", *changes, debug=False)
    assert len(struck) == 1
    assert_same(metrics, plain_run[1], within=1e-4)
    assert trained_on(tmp_path / "run") == trained_on(plain_run[0] / "run")
    [lost] = [event for event in events(tmp_path / "run", "warning") if "start again" in event["message"]]
    assert ("policy[1] gave no sign of life within 10 s" in lost["message"]) == (fault == "SIGSTOP")
    _wait_for(lambda: not psutil.pid_exists(struck[0]), seconds=20)


def final_weights(directory: Path) -> bytes:
    return (directory / "model" / "model.safetensors").read_bytes()


def test_ctrl_c_stops_cleanly_and_says_where_to_look(recipe_file, tmp_path):
    command = [sys.executable, "-m", "rlpipe", "run", str(recipe_file), "schedule.steps=500", "--debug"]
    directory = tmp_path / "run"
    process = subprocess.Popen(
        [*command, "--run-dir", str(directory)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    _wait_for(lambda: (directory / "events.jsonl").exists() and events(directory, "commit"), seconds=90)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert str(directory) in said and "report.html" in said and "Traceback" not in said
    assert events(directory, "run_finished")[-1]["status"] == "interrupted"
    assert (directory / "report.html").exists()


def _wait_for(condition, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the run did not get there in time"
        time.sleep(0.2)
