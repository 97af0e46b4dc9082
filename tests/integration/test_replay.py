"""Traces of a run, and its steps trained again: the numbers that were logged, in one process, the run left as it is."""

import bdb
import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import trace_format
from online_runs import RECIPE, REWARD, events, metrics_of
from rich.console import Console

from rlpipe.observe.runinfo import versions
from rlpipe.pipelines import checkpoints
from rlpipe.pipelines.profiling import Steps
from rlpipe.pipelines.replay import NoReplay, Request, replay
from rlpipe.pipelines.replay_shown import DIFFERENT, EQUAL, IMPOSSIBLE, compare
from rlpipe.pipelines.run import DONE, INTERRUPTED, run
from rlpipe.recipe.load import load
from rlpipe.training.checkpoint import CheckpointMismatch
from rlpipe.training.one_rank import as_one_rank

pytestmark = pytest.mark.integration

SAVED = "train.save_steps=2"
PPO = (
    "algorithm={name: ppo, group_size: 2, kl: {placement: reward, estimator: k1, coefficient: 0.1, "
    "controller: {kind: adaptive, target: 0.05, horizon: 16}}}",
    "train.minibatches=2",
    "train.zero_stage=2",
    "critic={zero_stage: 2, threads: 1}",
    "reference.threads=1",
)


def made(folder: Path, *changes: str, debug: bool = True) -> Path:
    """A run with traces of its steps 2 and 3."""
    (folder / "digits.py").write_text(REWARD)
    (folder / "recipe.yaml").write_text(RECIPE)
    assert run(load(folder / "recipe.yaml", changes), folder / "run", debug, Steps(2, 3)) == DONE
    return folder / "run"


@pytest.fixture(scope="module")
def debugged(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("debugged"), SAVED)


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory, ray_cluster) -> Path:
    ranks = ("train.ranks=2", "train.zero_stage=2", "train.tokens_per_micro_batch=128", "train.minibatches=2")
    return made(tmp_path_factory.mktemp("on_ray"), SAVED, *ranks, debug=False)


@pytest.fixture
def copied(debugged, tmp_path) -> Path:
    """That may be changed."""
    return shutil.copytree(debugged, tmp_path / "run")


def replayed(directory: Path, step: int, stop: bool = False, anyway: bool = False, tolerance: float = 1e-5) -> int:
    return compare(load(directory / "recipe.yaml"), Request(directory, step, None, stop, anyway), tolerance)


def digest(directory: Path) -> dict[str, str]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_step_gives_the_same_numbers_from_the_checkpoint_before_it(debugged, capsys):
    before = digest(debugged)
    assert replayed(debugged, 3, tolerance=0.0) == EQUAL
    said = capsys.readouterr().out
    assert "training step 3 of" in said and "from the checkpoint of step 2" in said
    assert "numbers are the same to the last bit" in said
    logged = metrics_of(debugged)[3]
    for name in ("loss", "grad_norm"):
        [row] = [line.split() for line in said.splitlines() if line.startswith(f"{name} ")]
        assert row == [name, f"{logged[name]:.9g}", f"{logged[name]:.9g}", "0"]
    assert digest(debugged) == before


def test_without_a_checkpoint_before_it_all_steps_are_trained_again(debugged, capsys):
    assert replayed(debugged, 2, tolerance=0.0) == EQUAL
    assert "training steps 1 to 2 of" in capsys.readouterr().out


def test_two_ranks_on_ray_and_one_process_agree(on_ray, capsys):
    before = digest(on_ray)
    assert replayed(on_ray, 3) == EQUAL
    said = capsys.readouterr().out
    assert "from the checkpoint of step 2" in said and "not used" not in said
    assert "loss" in said and "positions_used" not in said, "of how the batch was cut"
    assert digest(on_ray) == before


def test_a_critic_and_an_adaptive_penalty_go_on_where_the_checkpoint_has_them(tmp_path, capsys):
    directory = made(tmp_path, SAVED, *PPO)
    assert replayed(directory, 3, tolerance=0.0) == EQUAL
    said = capsys.readouterr().out
    assert "from the checkpoint of step 2" in said and "value/explained_variance" in said and "kl_coefficient" in said


def test_another_number_ends_with_one_and_is_named(copied, capsys):
    lines = (copied / "events.jsonl").read_text().splitlines()
    changed = [json.loads(line) for line in lines]
    for event in changed:
        if event["kind"] == "metrics" and event["step"] == 3:
            event["metrics"]["grad_norm"] += 0.001
    (copied / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in changed))
    assert replayed(copied, 3) == DIFFERENT
    said = capsys.readouterr().out
    assert "1 of 21 numbers differ by more than 1e-05; the furthest is grad_norm, by 1.0e-03" in said
    assert replayed(copied, 3, tolerance=0.01) == EQUAL


def test_what_cannot_be_trained_again_is_told(copied, capsys, monkeypatch):
    def refused(step: int, says: str) -> None:
        assert replayed(copied, step) == IMPOSSIBLE
        assert says in " ".join(capsys.readouterr().out.split())

    refused(4, "has no step 4: steps 1 to 3 are committed")
    with monkeypatch.context() as patch:
        patch.setattr("rlpipe.pipelines.replay.versions", lambda: versions() | {"rlpipe": "9.9.9"})
        refused(3, "was made by rlpipe 0.1.0, and this is rlpipe 9.9.9")
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: True)
        refused(3, "was trained without a GPU, and this process sees one")
    events, on_cpu = copied / "events.jsonl", '"kind": "trains_on", "device": "cpu"'
    as_it_was = events.read_text()
    assert on_cpu in as_it_was  # the ranks', whatever machine the driver has
    events.write_text(as_it_was.replace(on_cpu, on_cpu.replace("cpu", "cuda")))
    refused(3, "was trained on GPUs, and this process sees none")
    events.write_text(as_it_was)
    (copied / "rollouts" / "step-000001.parquet").unlink()
    refused(2, "step-000001.parquet")
    (copied / "rollouts" / "step-000003.parquet").write_bytes(b"PAR1")
    refused(3, f"what step 3 was trained on cannot be read: {copied.resolve()}")


def test_the_stage_of_a_pipeline_is_found_or_asked_for(tmp_path):
    def refused(recipe: str, stage: str | None, says: str) -> None:
        with pytest.raises(NoReplay, match=says):
            replay(load(recipe), Request(tmp_path, 1, stage, False, False), Console())

    refused("arithmetic/pipeline", None, "stages/grpo has no ledger: it ended before its first step")
    refused("arithmetic/pipeline", "sft", "has the RL stages grpo; name one with --stage")
    refused("arithmetic/sft", None, "has no RL stage, and no other stores its batches")


def test_what_one_rank_cannot_read_is_told(tmp_path):
    (tmp_path / "policy" / "deepspeed").mkdir(parents=True)
    (tmp_path / "policy" / "deepspeed" / "zero_pp_rank_1_mp_rank_00_model_states.pt").touch()
    with pytest.raises(CheckpointMismatch, match="is of ZeRO-3, which cuts every parameter"):
        as_one_rank(tmp_path / "policy", tmp_path / "one")


def test_a_damaged_checkpoint_is_passed_over_and_stays_where_it_is(copied, capsys):
    state = next((checkpoints.place(copied, 2) / "policy").rglob("*.pt"))
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    before = digest(copied)
    assert replayed(copied, 3, tolerance=0.0) == EQUAL
    said = capsys.readouterr().out
    assert "training steps 1 to 3 of" in said and "not used: step-000002 is damaged" in said
    assert digest(copied) == before


def test_it_stops_before_the_update_where_asked(debugged, monkeypatch, capsys):
    seen = []

    def hook():
        seen.append(sys._getframe(1).f_locals["batch"])
        raise bdb.BdbQuit

    monkeypatch.setattr(sys, "breakpointhook", hook)
    assert replayed(debugged, 3, stop=True) == INTERRUPTED
    assert len(seen[0].lengths_B) == 32 and seen[0].advantages_N is not None
    assert "Stopped." in capsys.readouterr().out


def test_traces_of_a_run_in_one_process(debugged):
    folder = debugged / "profile"
    assert sorted(path.name for path in folder.iterdir()) == ["process.json.gz", "timeline.json"]
    torch = trace_format.read(folder / "process.json.gz")
    names = [event["name"] for event in torch]
    assert names.count("policy: Policy.update") == 2, "of two steps"
    assert "engine: RolloutWorker.advance" in names and "aten::mm" in names
    assert any("Backward" in name for name in names), "of autograd's threads, too"


SFT = """
task: sft
name: traced
model: {scratch: qwen2, hidden_size: 64, layers: 2, heads: 2, kv_heads: 1, intermediate_size: 128}
data: {kind: arithmetic, largest: 9, heldout: 4}
train: {max_steps: 3, threads: 1, per_device_train_batch_size: 4, logging_steps: 1}
"""


def test_an_offline_stage_has_a_trace_of_each_rank(tmp_path):
    (tmp_path / "recipe.yaml").write_text(SFT)
    assert run(load(tmp_path / "recipe.yaml"), tmp_path / "run", True, Steps(2, 2)) == DONE
    folder = tmp_path / "run" / "profile"
    assert sorted(path.name for path in folder.iterdir()) == ["rank-0.json.gz", "timeline.json"]
    names = [event["name"] for event in trace_format.read(folder / "rank-0.json.gz")]
    assert "aten::mm" in names and any("Backward" in name for name in names)
    phases = trace_format.spans(trace_format.read(folder / "timeline.json"), ("driver", "phases"))
    assert "train" in [span["name"] for span in phases]


def test_steps_that_never_come_are_told_and_only_the_timeline_is_written(tmp_path):
    (tmp_path / "recipe.yaml").write_text(SFT)
    assert run(load(tmp_path / "recipe.yaml"), tmp_path / "run", True, Steps(4, 5)) == DONE
    assert [path.name for path in (tmp_path / "run" / "profile").iterdir()] == ["timeline.json"]
    told = [event["message"] for event in events(tmp_path / "run", "warning")]
    assert "--profile-steps 4:5: nothing was recorded, as the stage has no such whole step" in told


def test_the_timeline_has_driver_roles_and_engines(on_ray):
    events = trace_format.read(on_ray / "profile" / "timeline.json")
    trace_format.nests(events)
    assert [span["name"] for span in trace_format.spans(events, ("driver", "steps"))] == ["step 1", "step 2", "step 3"]
    phases = trace_format.spans(events, ("driver", "phases"))
    for name in ("generate", "score", "train", "record", "publish"):
        assert [p["args"]["step"] for p in phases if p["name"] == name and "step" in p["args"]] == [1, 2, 3]
    for process in ("policy[0]", "policy[1]"):
        updates = [s for s in trace_format.spans(events, (process, "policy")) if s["name"] == "Policy.update"]
        assert len(updates) == 4, "two minibatches in each of two steps"
        train = [(p["ts"], p["ts"] + p["dur"]) for p in phases if p["name"] == "train"]
        assert all(any(a <= u["ts"] and u["ts"] + u["dur"] <= b for a, b in train) for u in updates)
    assert any(s["name"] == "RolloutWorker.advance" for s in trace_format.spans(events, ("engine", "engine")))


def test_on_ray_every_process_and_ray_itself_has_a_trace(on_ray):
    folder = on_ray / "profile"
    expected = ["engine.json.gz", "policy-0.json.gz", "policy-1.json.gz", "ray.json", "timeline.json"]
    assert sorted(path.name for path in folder.iterdir()) == expected
    for rank in (0, 1):
        names = [event["name"] for event in trace_format.read(folder / f"policy-{rank}.json.gz")]
        assert names.count("policy: Policy.update") == 4 and "aten::mm" in names
    ray = trace_format.read(folder / "ray.json")
    assert any("run" in event["name"] for event in ray if event["ph"] == "X")
    assert events(on_ray, "fault") == []
