"""Each role is killed once at each boundary of a step, and the run comes out as if nothing had happened; also where the
newest checkpoint is damaged on top.

The engine's answers do not depend on how it is asked, so the result is the same to the last bit. Here all roles live in
this process; with `-m soak` they are processes under Ray, which get SIGKILL, and so do engines of vLLM.
"""

from pathlib import Path

import local_ray
import pyarrow.parquet as pq
import pytest
import ray
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


IN_TURN = {
    ("generate", 2): "engine",
    ("score", 3): "reward/rm",
    ("prepare", 4): "reference",
    ("train", 5): "critic",
    ("record", 6): "policy",
    ("publish", 7): "engine",
    ("evaluate", 8): "reward/rm",
    ("checkpoint", 9): "policy",
}
"""Every role, and every boundary."""
AHEAD = ("run.max_staleness=1", "algorithm.correction={kind: tis}", "rollout.max_num_seqs=3")


def test_while_an_engine_samples_ahead_no_answer_is_missing_or_twice_or_too_old(
    undisturbed, recipe_file, tmp_path, monkeypatch
):
    struck = carry_out(IN_TURN, monkeypatch)
    train(recipe_file, tmp_path / "run", *AHEAD)
    assert struck == list(IN_TURN)
    assert_whole(tmp_path / "run", undisturbed[0])


def assert_whole(ahead: Path, synchronous: Path) -> None:
    """Each step has the prompts of the step of a synchronous run, and no response is older than it may be."""
    assert samples(ahead) == samples(synchronous)
    versions = [[row["versions"][0]["version"] for row in step] for step in steps_of(ahead)]
    assert {step - version for step, each in enumerate(versions) for version in each} == {0, 1}


def samples(directory: Path) -> list[list[tuple]]:
    names = ("epoch", "prompt_id", "sample_index")
    return [sorted(tuple(row[name] for name in names) for row in step) for step in steps_of(directory)]


def steps_of(directory: Path) -> list[list[dict]]:
    return [pq.read_table(file).to_pylist() for file in sorted((directory / "rollouts").glob("*.parquet"))]


def test_a_reward_model_that_is_split_starts_again_with_the_training_roles(
    undisturbed, recipe_file, tmp_path, monkeypatch
):
    place, expected = undisturbed
    plan = {("score", 3): "reward/rm", ("train", 4): "reward/rm"}
    struck = carry_out(plan, monkeypatch)
    metrics = train(recipe_file, tmp_path / "run", "rewards.mix.0.zero_stage=3")
    assert struck == list(plan)
    assert warnings(tmp_path / "run", "reward/rm was killed by the test") == 2
    assert warnings(tmp_path / "run", "(reward/rm, policy, reference, critic) start again (1 of 3 in a row)") == 2
    assert_same(metrics, expected, within=0.0)
    assert trained_on(tmp_path / "run") == trained_on(place)


@pytest.fixture(scope="module")
def forking_ray():
    """A Ray whose processes have their imports behind them, so that forty deaths take minutes."""
    if ray.is_initialized():
        yield
        return
    local_ray.start()
    yield
    ray.shutdown()


TWO_RANKS = ("rewards.mix.0.ranks=2", "rewards.mix.0.zero_stage=3")


@pytest.mark.soak
@pytest.mark.integration
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("role", "changes"),
    [(role, ()) for role in (*GANG, "reward/rm", "engine")] + [("reward/rm", TWO_RANKS)],
    ids=[*GANG, "reward model", "engine", "reward model that is split"],
)
def test_processes_that_get_sigkill_at_every_boundary_change_nothing(
    role, changes, forking_ray, undisturbed, recipe_file, tmp_path, monkeypatch
):
    place, expected = undisturbed
    struck = carry_out(at_each_boundary(role), monkeypatch, kill, RayRuntime)
    metrics = train(recipe_file, tmp_path / "run", *changes, debug=False)
    assert [phase for phase, _ in struck] == list(BOUNDARIES)
    alone = role == "engine" or (role == "reward/rm" and not changes)
    mended = f"{role} serves again" if alone else "the training roles are there again"
    assert warnings(tmp_path / "run", mended) == len(BOUNDARIES)
    assert_same(metrics, expected, within=1e-5 if changes else 0.0)
    assert trained_on(tmp_path / "run") == trained_on(place)
    assert changes or weights(tmp_path / "run") == weights(place)


@pytest.mark.soak
@pytest.mark.integration
@pytest.mark.timeout(1200)
def test_processes_that_get_sigkill_while_an_engine_samples_ahead_lose_nothing(
    forking_ray, undisturbed, recipe_file, tmp_path, monkeypatch
):
    struck = carry_out(IN_TURN, monkeypatch, kill, RayRuntime)
    train(recipe_file, tmp_path / "run", *AHEAD, debug=False)
    assert struck == list(IN_TURN)
    assert_whole(tmp_path / "run", undisturbed[0])


VLLM = ("rollout.engine=vllm", "rollout.kv_cache_gib=0.05")


@pytest.mark.soak
@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_an_engine_of_vllm_that_gets_sigkill_at_every_boundary_changes_nothing(
    forking_ray, recipe_file, tmp_path, monkeypatch
):
    """Answers that were on their way are asked for again, in other batches."""
    expected = train(recipe_file, tmp_path / "whole", *VLLM, debug=False)
    struck = carry_out(at_each_boundary("engine"), monkeypatch, kill, RayRuntime)
    metrics = train(recipe_file, tmp_path / "run", *VLLM, debug=False)
    assert [phase for phase, _ in struck] == list(BOUNDARIES)
    assert warnings(tmp_path / "run", "engine serves again") == len(BOUNDARIES)
    assert_same(metrics, expected, within=1e-5)
    assert trained_on(tmp_path / "run") == trained_on(tmp_path / "whole")
