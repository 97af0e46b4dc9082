"""Roles as a recipe describes them."""

import pytest

from rlpipe.algorithms.online import OnlineAlgorithm
from rlpipe.models.load import ModelError
from rlpipe.models.scratch import build_tokenizer
from rlpipe.pipelines import roles
from rlpipe.pipelines.online import rl
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.load import load
from rlpipe.runtime.roles import seats_at
from rlpipe.training.sharding import Sharding

SEAT = seats_at([("node", "127.0.0.1", 1)])[0]


MODEL = "model={scratch: qwen2, hidden_size: 64, heads: 2, kv_heads: 1}"


def stage(tmp_path, *changes, debug=False):
    return Stage(load("arithmetic/grpo", ["algorithm.name=ppo", MODEL, *changes]), tmp_path, None, None, debug)


def critic(tmp_path, *changes, debug=False):
    role = roles.critic(stage(tmp_path, *changes, debug=debug))
    return role, role.arguments(SEAT)[0]


def started(tmp_path, *changes):
    it = stage(tmp_path, *changes)
    algorithm = OnlineAlgorithm(roles.algorithm_settings(it.recipe), it.recipe.rollout.max_new_tokens)
    return {role.name: role for role in rl._roles(it, it.recipe, algorithm)}


def test_what_is_started(tmp_path):
    assert started(tmp_path).keys() == {"policy", "engine", "reference", "critic"}
    assert started(tmp_path, "algorithm.kl.coefficient=0").keys() == {"policy", "engine", "critic"}


def test_with_an_adapter_no_reference_is_started(tmp_path):
    found = started(tmp_path, "adapter={kind: lora, r: 4}")
    assert found.keys() == {"policy", "engine", "critic"}
    assert found["policy"].arguments(SEAT)[0].adapter.r == found["engine"].arguments(SEAT)[0].lora_rank == 4
    merged = started(tmp_path, "adapter={kind: lora, r: 4}", "publishing.adapter=merged")
    assert merged["policy"].arguments(SEAT)[0].merge_adapter and merged["engine"].arguments(SEAT)[0].lora_rank is None


def test_the_reference_has_settings_of_its_own(tmp_path):
    changes = ["ranks=3", "zero_stage=3", "offload_param=true", "dtype=bfloat16", "threads=2", "resources.gpus=1"]
    role = started(tmp_path, "train.ranks=2", *(f"reference.{change}" for change in changes))["reference"]
    spec, _ = role.arguments(SEAT)
    assert (role.count, role.threads, role.resources.gpus, role.shares) == (3, 2, 1, None)
    assert (spec.sharding, spec.dtype) == (Sharding(3, False, True), "bfloat16")
    assert started(tmp_path)["reference"].arguments(SEAT)[0].dtype == "auto", "the model's own"


@pytest.mark.parametrize("name", ["reference", "critic"])
def test_a_role_that_shares_is_as_the_policy_is(tmp_path, name):
    train = ("train.ranks=2", "train.threads=3", "train.resources.gpus=1")
    role = started(tmp_path, *train, f"{name}.share=policy")[name]
    assert (role.count, role.threads, role.resources.gpus, role.shares) == (2, 3, 1, "policy")


def test_a_critic_on_the_policy_s_base_is_given_the_policy(tmp_path):
    changes = ("adapter={kind: lora, r: 4}", "critic={share: base, adapter: {kind: lora, r: 8}}")
    found = started(tmp_path, *changes)
    assert (found["critic"].shares, found["critic"].host) == ("policy", "policy")
    assert found["policy"].arguments(SEAT)[0].lends_base
    assert found["critic"].arguments(SEAT)[0].adapter.r == 8
    own = started(tmp_path, *changes, "critic.share=policy")
    assert (own["critic"].shares, own["critic"].host) == ("policy", None)
    assert not own["policy"].arguments(SEAT)[0].lends_base


def test_by_default_it_starts_from_the_policy_s_model(tmp_path):
    role, spec = critic(tmp_path, "critic.ranks=3", "critic.zero_stage=2", "critic.value_clip=0.5", "train.epochs=2")
    assert (role.name, role.count, role.recipe_key) == ("critic", 3, "critic")
    assert (spec.path, spec.sharding.zero_stage, spec.value_clip) == (str(tmp_path / "base"), 2, 0.5)
    assert spec.total_steps == 400
    assert critic(tmp_path, "critic.ranks=3", debug=True)[0].count == 1


def test_another_model_needs_the_policy_s_vocabulary(tmp_path):
    tokenizer, folder = build_tokenizer(), tmp_path / "rm"
    tokenizer.save_pretrained(folder)
    assert critic(tmp_path, f"critic.model={folder}")[1].path == str(folder)
    tokenizer.add_tokens(["2+2"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"critic.model: .* has another vocabulary than the policy's model"):
        critic(tmp_path, f"critic.model={folder}")
