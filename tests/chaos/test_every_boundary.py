"""Each role is killed once at each boundary of a step, and the run comes out as if nothing had happened; also where the
newest checkpoint is damaged on top.

For the breadth all roles live in this process, with an engine whose answers do not depend on how it is asked: the
result is the same to the last bit. Real processes under Ray get a real SIGKILL at some of them, and engines of vLLM at
all.
"""

from pathlib import Path

import pytest
import tiny_models
from online_runs import assert_same, events, train, trained_on
from strikes import BOUNDARIES, at_each_boundary, carry_out, kill

from rlpipe.runtime.ray_runtime import RayRuntime

RECIPE = """
task: rl
name: struck
model: {path: model}
data: {kind: arithmetic, largest: 9, heldout: 4}
rewards: {mix: [{kind: model, name: rm, path: rm, threads: 1, resources: {cpus: 0.1}}]}
algorithm: {name: ppo, group_size: 2, kl: {coefficient: 0.05}}
schedule: {steps: 10, prompts_per_step: 2}
train: {threads: 1, resources: {cpus: 0.1}, save_steps: 1, optimizer: {learning_rate: 1e-3}}
reference: {threads: 1, resources: {cpus: 0.1}}
critic: {threads: 1, resources: {cpus: 0.1}}
rollout: {engine: transformers, max_new_tokens: 4, threads: 1, resources: {cpus: 0.1}}
evaluation: {prompts: 2, every: 1, samples: 1, pass_at: [], correct_at: null}
tracking: {tensorboard: false}
"""
GANG = ("policy", "critic", "reference")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("struck")
    model = tiny_models.save_model(folder / "model")
    tiny_models.save_reward_model(folder / "rm", model)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def undisturbed(recipe_file):
    place = recipe_file.parent / "whole"
    return place, train(recipe_file, place)


def weights(directory: Path) -> bytes:
    return (directory / "model" / "model.safetensors").read_bytes()


def warnings(directory: Path, words: str) -> int:
    return sum(words in event["message"] for event in events(directory, "warning"))


@pytest.mark.parametrize("role", ["policy", "critic", "reference", "reward/rm", "engine"])
def test_a_role_that_is_killed_at_every_boundary_changes_nothing(role, undisturbed, recipe_file, tmp_path, monkeypatch):
    place, expected = undisturbed
    damaged: list[str] = []

    def damage(phase: str, step: int) -> None:
        if (role, phase) == ("policy", "train"):
            newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
            [state] = (newest / "policy").rglob("*model_states.pt")
            state.write_bytes(state.read_bytes()[:-1] + b"x")
            damaged.append(newest.name)

    struck = carry_out(at_each_boundary(role), monkeypatch, beside=damage)
    metrics = train(recipe_file, tmp_path / "run")
    assert [phase for phase, _ in struck] == list(BOUNDARIES)
    mended = "the training roles are there again" if role in GANG else f"{role} serves again"
    assert warnings(tmp_path / "run", mended) == len(BOUNDARIES)
    assert warnings(tmp_path / "run", f"{role} was killed by the test") == len(BOUNDARIES)
    assert all(warnings(tmp_path / "run", f"{name} is damaged and not used") == 1 for name in damaged)
    assert len(damaged) == (role == "policy")
    assert_same(metrics, expected, within=0.0)
    assert trained_on(tmp_path / "run") == trained_on(place)
    assert weights(tmp_path / "run") == weights(place)


@pytest.mark.soak
@pytest.mark.integration
@pytest.mark.timeout(1200)
def test_processes_of_every_role_that_get_sigkill_change_nothing(undisturbed, recipe_file, tmp_path, monkeypatch):
    place, expected = undisturbed
    plan = {
        ("generate", 2): "engine",
        ("score", 3): "reward/rm",
        ("prepare", 4): "reference",
        ("train", 5): "critic",
        ("record", 6): "policy",
        ("publish", 7): "engine",
        ("evaluate", 8): "reward/rm",
        ("checkpoint", 9): "policy",
    }
    struck = carry_out(plan, monkeypatch, kill, RayRuntime)
    metrics = train(recipe_file, tmp_path / "run", debug=False)
    assert struck == list(plan)
    assert warnings(tmp_path / "run", "the training roles are there again") == 4
    for role in ("engine", "reward/rm"):
        assert warnings(tmp_path / "run", f"{role} serves again") == 2
    assert_same(metrics, expected, within=1e-5)
    assert trained_on(tmp_path / "run") == trained_on(place)


VLLM = ("rollout.engine=vllm", "rollout.kv_cache_gib=0.05")


@pytest.mark.soak
@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_an_engine_of_vllm_that_gets_sigkill_at_every_boundary_changes_nothing(recipe_file, tmp_path, monkeypatch):
    """Answers that were on their way are asked for again, in other batches."""
    expected = train(recipe_file, tmp_path / "whole", *VLLM, debug=False)
    struck = carry_out(at_each_boundary("engine"), monkeypatch, kill, RayRuntime)
    metrics = train(recipe_file, tmp_path / "run", *VLLM, debug=False)
    assert [phase for phase, _ in struck] == list(BOUNDARIES)
    assert warnings(tmp_path / "run", "engine serves again") == len(BOUNDARIES)
    assert_same(metrics, expected, within=1e-5)
    assert trained_on(tmp_path / "run") == trained_on(tmp_path / "whole")
