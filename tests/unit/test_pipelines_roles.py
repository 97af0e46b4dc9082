"""The critic's role as a recipe describes it."""

import pytest

from rlpipe.models.load import ModelError
from rlpipe.models.scratch import build_tokenizer
from rlpipe.pipelines import roles
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.load import load
from rlpipe.runtime.roles import seats_at

SEAT = seats_at([("node", "127.0.0.1", 1)])[0]


def critic(tmp_path, *changes, debug=False):
    recipe = load(
        "arithmetic/grpo",
        ["algorithm.name=ppo", "model={scratch: qwen2, hidden_size: 64, heads: 2, kv_heads: 1}", *changes],
    )
    role = roles.critic(Stage(recipe, tmp_path, None, None, debug))
    return role, role.arguments(SEAT)[0]


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
