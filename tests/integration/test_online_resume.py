"""RL that was killed goes on as if nothing had happened: the same prompts, numbers and weights, to the last bit."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from test_online import RECIPE, REWARD, events
from test_online import assert_same as assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlpipe.data.storage import Storage
from rlpipe.ledger.ledger import Ledger
from rlpipe.observe.events import read
from rlpipe.pipelines import checkpoints
from rlpipe.pipelines.evaluation import Evaluator
from rlpipe.pipelines.online.publisher import Publisher
from rlpipe.pipelines.online.sampler import Sampler
from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.pipelines.run import DONE, FAILED, run
from rlpipe.recipe.load import load

pytestmark = pytest.mark.integration

COMMON = ("schedule.steps=5", "schedule.prompts_per_step=4", "train.save_steps=2", "evaluation.every=2")
ADAPTIVE = "coefficient: 0.1, controller: {kind: adaptive, target: 0.05, horizon: 16}"
CASES = {
    "grpo": (f"algorithm.kl={{{ADAPTIVE}}}", "algorithm.dynamic_sampling={max_rounds: 1}", "reference.threads=1"),
    "ppo, a critic, ZeRO-2": (
        f"algorithm={{name: ppo, group_size: 2, kl: {{placement: reward, estimator: k1, {ADAPTIVE}}}}}",
        "train.minibatches=2",
        "train.zero_stage=2",
        "critic={zero_stage: 2, threads: 1}",
        "reference.threads=1",
    ),
    "lora, ZeRO-3": ("adapter={kind: lora, r: 4, lora_alpha: 16}", "train.zero_stage=3"),
}


class Killed(Exception):
    """Stands for the death of the process: nothing after it happens."""


class Run:
    """A recipe in a folder of its own, in this process."""

    def __init__(self, folder: Path, case: str) -> None:
        self.folder, self.directory, self.changes = folder, folder / "run", (*COMMON, *CASES[case])
        folder.mkdir(exist_ok=True)
        (folder / "digits.py").write_text(REWARD)
        (folder / "recipe.yaml").write_text(RECIPE)

    def goes(self, *changes: str, debug: bool = True) -> int:
        return run(load(self.folder / "recipe.yaml", (*self.changes, *changes)), self.directory, debug)

    def numbers(self) -> dict[int, dict[str, float]]:
        """Of every step, and without what depends on the clock; of a step done again, the last."""
        timed = ("step_seconds", "tokens_per_second", "publish/seconds")
        found: dict[int, dict[str, float]] = {}
        for event in events(self.directory, "metrics"):
            kept = {name: value for name, value in event["metrics"].items() if name not in timed}
            found.setdefault(event["step"], {}).update(kept)
        found.pop(0, None)  # the model's sizes
        return found

    def evaluations(self) -> dict[int, tuple]:
        return {e["step"]: (e["metrics"], e["samples"]) for e in events(self.directory, "evaluation")}

    def prompts(self) -> list[list]:
        """What was sampled and trained on. (A prompt that is leased again has another group id.)"""
        files = sorted((self.directory / "rollouts").glob("*.parquet"))
        return [pq.read_table(file).drop_columns(["group_id"]).to_pylist() for file in files]

    def weights(self) -> dict:
        return load_file(self.directory / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that were not killed, by case."""
    runs: dict[str, Run] = {}

    def of(case: str) -> Run:
        if case not in runs:
            runs[case] = Run(tmp_path_factory.mktemp("whole"), case)
            assert runs[case].goes() == DONE
        return runs[case]

    return of


def assert_same(ours: Run, theirs: Run) -> None:
    assert ours.prompts() == theirs.prompts()
    assert ours.evaluations() == theirs.evaluations()
    mine, other = ours.numbers(), theirs.numbers()
    assert mine.keys() == other.keys()
    for step in mine:
        assert {n: mine[step].get(n) for n in other[step]} == other[step], step
    weights = ours.weights()
    assert all(bool((weights[name] == tensor).all()) for name, tensor in theirs.weights().items())


def dies(monkeypatch, owner, name: str, call: int, after: bool = False) -> None:
    """The process dies before, or after, call number `call` of this function."""
    real, calls = getattr(owner, name), iter(range(1, 1000))

    def dying(*args, **kwargs):
        fatal = next(calls) == call
        if fatal and not after:
            raise Killed
        found = real(*args, **kwargs)
        if fatal:
            raise Killed
        return found

    monkeypatch.setattr(owner, name, dying)


MOMENTS = {
    "before anything is trained": ((Trainer, "update", 1), 0, 0),
    "while it generates, after the checkpoint": ((Sampler, "scored", 3), 2, 2),
    "between train and record": ((Ledger, "commit", 4), 2, 3),
    "between record and publish": ((Publisher, "publish", 4), 2, 3),
    "between the checkpoint's files and its name": ((checkpoints, "commit", 2), 2, 4),
    "after the last checkpoint": ((checkpoints, "commit", 3, True), 5, 5),
}
"""Where it dies, the checkpoint that stands then, and the last committed step."""
MEETINGS = [
    ("grpo", "before anything is trained"),
    ("grpo", "between record and publish"),
    ("grpo", "after the last checkpoint"),
    ("ppo, a critic, ZeRO-2", "between train and record"),
    ("ppo, a critic, ZeRO-2", "between the checkpoint's files and its name"),
    ("lora, ZeRO-3", "while it generates, after the checkpoint"),
    ("lora, ZeRO-3", "between record and publish"),
]


@pytest.mark.parametrize(("case", "moment"), MEETINGS)
def test_what_goes_on_ends_as_what_was_never_killed(case, moment, whole, tmp_path, monkeypatch):
    death, saved, committed = MOMENTS[moment]
    killed = Run(tmp_path, case)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dies(patch, *death)
        killed.goes()
    assert checkpoints.last_step(killed.directory) == saved
    assert killed.goes() == DONE
    assert_same(killed, whole(case))
    notes = [event["message"] for event in events(killed.directory, "note")]
    says = f"resuming from step {saved}, replaying {committed - saved} steps from their stored trajectories"
    assert (says in notes) == (committed > 0)
    assert steps_generated_again(killed) == list(range(committed + 1, 6))
    if moment == "between train and record":  # its answers were stored, and are not asked for again
        rows = pq.read_table(killed.directory / "rollouts" / "step-000004.parquet").to_pylist()
        assert not any("r1/" in row["group_id"] for row in rows)


def steps_generated_again(run: Run) -> list[int]:
    """Of the last life."""
    found = read(Storage(run.directory))[0]
    begun = max(i for i, event in enumerate(found) if event["kind"] == "run_started")
    generated = [event["step"] for event in found[begun:] if event.get("phase") == "generate"]
    return sorted(set(generated))


NEEDS_A_SERVER = f"""
from pathlib import Path
{REWARD.rstrip()} if not Path(__file__).with_name("down").exists() else 1 / 0
"""


def test_what_no_reward_could_be_computed_of_is_asked_again(whole, tmp_path, monkeypatch):
    stopped, real = Run(tmp_path, "lora, ZeRO-3"), Sampler.scored
    (tmp_path / "digits.py").write_text(NEEDS_A_SERVER)

    def scored(self, count, step):
        if step == 3:
            (tmp_path / "down").touch()
        return real(self, count, step)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "scored", scored)
        assert stopped.goes() == FAILED
    assert "RewardFailed" in events(stopped.directory, "fault")[-1]["message"]
    (tmp_path / "down").unlink()
    assert stopped.goes() == DONE
    assert_same(stopped, whole("lora, ZeRO-3"))


def test_a_checkpoint_tells_where_the_run_stood_and_loads_as_a_model(whole):
    done = whole("grpo")
    folder = done.directory / "checkpoints" / "step-000004"
    state = json.loads((folder / "state.json").read_text())
    assert (state["step"], state["version"], state["ledger"]["step"]) == (4, 4, 4)
    assert state["ledger"]["cursor"]["position"] >= 16
    assert state["evaluation"] == done.evaluations()[4][0]
    assert state["driver"]["kl"]["coefficient"] == done.numbers()[5]["kl_coefficient"] != 0.1
    assert state["layout"] == {"train.ranks": 1, "train.zero_stage": 0}
    last = AutoModelForCausalLM.from_pretrained(folder.with_name("step-000005") / "model").state_dict()
    assert all(bool((last[name] == tensor).all()) for name, tensor in done.weights().items())
    assert AutoTokenizer.from_pretrained(folder / "model").chat_template
    assert sorted(path.name for path in folder.parent.iterdir()) == ["step-000004", "step-000005"]


def test_with_an_adapter_a_checkpoint_has_that_alone(whole):
    done = whole("lora, ZeRO-3")
    folder = done.directory / "checkpoints" / "step-000005"
    held = load_file(folder / "adapter" / "adapter_model.safetensors")
    made = load_file(done.directory / "adapter" / "adapter_model.safetensors")
    assert held.keys() == made.keys() and all(bool((held[name] == made[name]).all()) for name in made)
    assert AutoPeftModelForCausalLM.from_pretrained(folder / "adapter").peft_config["default"].r == 4
    assert not (folder / "model").exists()


def test_on_ray_with_two_ranks_and_then_two_engines(whole, tmp_path, monkeypatch, ray_cluster, capsys):
    killed = Run(tmp_path, "lora, ZeRO-3")
    ranks = ("train.ranks=2", "train.zero_stage=2", "train.tokens_per_micro_batch=128")
    with monkeypatch.context() as patch:
        dies(patch, Publisher, "publish", 4)
        assert killed.goes(*ranks, debug=False) == FAILED
    assert killed.goes(*ranks) == FAILED  # with --debug
    assert "was written with train.ranks=2, and train.ranks=1 cannot go on from it" in " ".join(
        capsys.readouterr().out.split()
    )
    assert killed.goes(*ranks, "rollout.engines=2", debug=False) == DONE
    assert steps_generated_again(killed) == [4, 5]
    assert_close(killed.numbers(), whole("lora, ZeRO-3").numbers(), within=2e-5)


def test_a_stage_killed_from_outside_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, capsys):
    stage = yaml.safe_load(RECIPE) | {"schedule": {"steps": 20, "prompts_per_step": 2}}
    stage["train"] |= {"save_steps": 3}
    stage["evaluation"] |= {"every": 100, "prompts": 2}
    (tmp_path / "digits.py").write_text(REWARD)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"task": "pipeline", "stages": {"first": stage}}))
    place = tmp_path / "run"
    command = ["run", str(tmp_path / "recipe.yaml"), "--run-dir", str(place), "--debug"]
    process = subprocess.Popen([sys.executable, "-m", "rlpipe", *command], stdout=subprocess.DEVNULL)
    folders = place / "stages" / "first" / "checkpoints"
    while not (folders / "step-000006").is_dir():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    newest, before = sorted(folders.glob("step-*"))[::-1][:2]
    state = next(newest.glob("policy/deepspeed/*.pt"))
    state.write_bytes(state.read_bytes()[:-1] + b"x")

    assert run(load(place / "recipe.yaml"), place, debug=True) == DONE
    said = " ".join(capsys.readouterr().out.split())
    assert f"{newest.name} is damaged and not used" in said
    assert f"resuming from step {int(before.name.removeprefix('step-'))}, replaying" in said
    assert run(load(tmp_path / "recipe.yaml"), tmp_path / "whole", debug=True) == DONE
    ours, theirs = (load_file(d / "stages/first/model/model.safetensors") for d in (place, tmp_path / "whole"))
    assert all(bool((ours[name] == tensor).all()) for name, tensor in theirs.items())


def test_the_best_checkpoint_is_kept_and_becomes_the_result(tmp_path, monkeypatch):
    """Rewards of held-out answers are made to fall, so that the first checkpoint is the best."""
    best = Run(tmp_path, "lora, ZeRO-3")
    real, measured = Evaluator.run, iter([0.0, 0.9, 0.7, 0.8, 0.8])

    def judged(self, *args):
        return replace(real(self, *args), metrics={"reward": next(measured)})

    monkeypatch.setattr(Evaluator, "run", judged)
    changes = ("schedule.steps=7", "train.save_total_limit=1", "train.load_best_model_at_end=true")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dies(patch, Ledger, "commit", 7)
        best.goes(*changes)
    assert best.goes(*changes) == DONE
    folders = best.directory / "checkpoints"
    assert sorted(path.name for path in folders.iterdir()) == ["step-000002", "step-000007"]
    made = load_file(best.directory / "adapter" / "adapter_model.safetensors")
    first, last = (load_file(folders / f"step-00000{n}/adapter/adapter_model.safetensors") for n in (2, 7))
    assert all(bool((made[name] == first[name]).all()) for name in made)
    assert not all(bool((made[name] == last[name]).all()) for name in made)
    notes = [event["message"] for event in events(best.directory, "note")]
    assert "the result is the model of step 2: no checkpoint has a higher reward" in notes


def test_the_benchmark_of_checkpoints_works(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import checkpoint

    checkpoint.measure(tmp_path, quick=True, times=1)
    assert "| sealed beside training" in capsys.readouterr().out
