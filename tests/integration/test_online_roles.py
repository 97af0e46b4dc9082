"""PPO with a reference, a reward model and a critic: of their own or in the policy's processes, it is the same run."""

from pathlib import Path

import pytest
import tiny_models
from test_online import assert_same, train

from rlpipe.runtime import ray_runtime

pytestmark = [pytest.mark.integration, pytest.mark.slow]

RECIPE = """
task: rl
name: roles-test
model: {path: model}
data: {kind: arithmetic, largest: 9, heldout: 16}
rewards: {mix: [{kind: model, path: rm}]}
algorithm: {name: ppo, group_size: 2, kl: {coefficient: 0.05}}
schedule: {steps: 2, prompts_per_step: 8}
train: {minibatches: 2, threads: 1, tokens_per_micro_batch: 128, resources: {cpus: 0.1}}
rollout: {engine: transformers, max_new_tokens: 6, threads: 1, resources: {cpus: 0.1}}
evaluation: {prompts: 8, every: 2, pass_at: [], correct_at: null}
"""

OWN = [f"{role}={{threads: 1, resources: {{cpus: 0.1}}}}" for role in ("reference", "critic")]
OWN += ["rewards.mix.0.threads=1", "rewards.mix.0.resources.cpus=0.1"]
SHARED = ["reference.share=policy", "critic.share=policy", "rewards.mix.0.share=policy"]


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("roles")
    model = tiny_models.save_model(folder / "model")
    tiny_models.save_reward_model(folder / "rm", model)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def plain_run(recipe_file, tmp_path_factory) -> dict:
    """In this process."""
    return train(recipe_file, tmp_path_factory.mktemp("plain") / "run", *OWN)


@pytest.fixture
def bundles(monkeypatch) -> list[int]:
    """How many bundles each start of a runtime reserved."""
    counts, reserve = [], ray_runtime.reserve

    def counting(roles, seconds):
        places = reserve(roles, seconds)
        counts.append(sum(map(len, places.values())))
        return places

    monkeypatch.setattr(ray_runtime, "reserve", counting)
    return counts


def test_two_ranks_of_every_role(plain_run, recipe_file, tmp_path, ray_cluster, bundles):
    changes = ("train.ranks=2", "reference.ranks=2", "critic.ranks=2", "critic.zero_stage=2", "rewards.mix.0.ranks=2")
    assert_same(plain_run, train(recipe_file, tmp_path / "run", *OWN, *changes, debug=False), within=1e-5)
    assert bundles == [9]


def test_a_reference_and_a_reward_model_split_over_two_ranks(plain_run, recipe_file, tmp_path, ray_cluster):
    split = ("ranks=2", "zero_stage=3", "offload_param=true")
    changes = [f"{role}.{key}" for role in ("reference", "rewards.mix.0") for key in split]
    assert_same(plain_run, train(recipe_file, tmp_path / "run", *OWN, *changes, debug=False), within=1e-5)


@pytest.mark.parametrize("ranks", [1, 2])
def test_everything_in_the_policy_s_processes(plain_run, recipe_file, tmp_path, ray_cluster, bundles, ranks):
    changes = (*SHARED, f"train.ranks={ranks}", "train.zero_stage=2", "critic.zero_stage=3", "reference.zero_stage=3")
    split = ("rewards.mix.0.zero_stage=3",)
    assert_same(plain_run, train(recipe_file, tmp_path / "run", *changes, *split, debug=False), within=1e-5)
    assert bundles == [ranks + 1], "the policy's and the engine's"
