"""The presets' numbers, sections laid over them, and what an impossible combination is answered with."""

# ruff: noqa: E501  (messages and tables stand as people see them)

from pathlib import Path

import pytest
from small_recipe import RL

from rlpipe.recipe.algorithm import PRESETS
from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load
from rlpipe.recipe.resolved import to_yaml
from rlpipe.recipe.schema import json_schema


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def recipe(*overrides, text=RL):
    Path("r.yaml").write_text(text)
    return load("r.yaml", overrides)


def algorithm(*overrides, text=RL):
    return recipe(*overrides, text=text).algorithm


def message(*overrides, text=RL):
    Path("r.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load("r.yaml", overrides)
    return str(caught.value)


NO_KL = ("loss", 0.0, "k3")
CLIP = {"kind": "ppo_clip", "clip_low": 0.2, "clip_high": 0.2}
GROUP = {"kind": "group", "scale_by_std": True}
DEFAULTS = {
    #                    size advantage                                        loss                                            aggregation                KL: where, how much, estimator
    "ppo": (1, {"kind": "gae", "gamma": 1.0, "lam": 0.95, "whiten": True}, CLIP, "token_mean", ("reward", 0.02, "k1")),
    "grpo": (8, GROUP, CLIP, "token_mean", NO_KL),
    "dr_grpo": (8, {"kind": "group", "scale_by_std": False}, CLIP, "constant", NO_KL),
    "dapo": (16, GROUP, CLIP | {"clip_high": 0.28}, "token_mean", NO_KL),
    "rloo": (4, {"kind": "rloo"}, {"kind": "policy_gradient"}, "sequence_mean_token_sum", ("reward", 0.05, "k1")),
    "reinforce++": (1, {"kind": "reinforce++", "gamma": 1.0}, CLIP, "token_mean", ("reward", 0.01, "k1")),
    "reinforce++_baseline": (8, {"kind": "reinforce++_baseline"}, CLIP, "token_mean", ("loss", 1e-4, "k2")),
    "gspo": (8, GROUP, {"kind": "gspo", "clip_low": 3e-4, "clip_high": 4e-4}, "sequence_mean", NO_KL),
    "cispo": (8, GROUP, {"kind": "cispo", "clip_low": 1.0, "clip_high": 4.0}, "token_mean", NO_KL),
    "online_dpo": (
        2,
        {"kind": "dpo", "beta": 0.1, "loss_type": "sigmoid"},
        {"kind": "policy_gradient"},
        "sequence_mean_token_sum",
        NO_KL,
    ),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_number_of_a_preset(name):
    parts = algorithm(f"algorithm.name={name}").model_dump()
    kl = parts["kl"]
    assert kl.pop("controller") == {"kind": "fixed"}
    assert (parts["group_size"], parts["advantage"], parts["loss"], parts["aggregation"]) == DEFAULTS[name][:4]
    assert (kl["placement"], kl["coefficient"], kl["estimator"]) == DEFAULTS[name][4]
    assert parts["correction"] == {"kind": "none"} and parts["entropy_coefficient"] == 0.0
    dapo = name == "dapo"
    assert parts["shaping"] == ([{"kind": "overlong", "buffer": "auto"}] if dapo else [])
    assert parts["dynamic_sampling"] == ({"max_rounds": 10} if dapo else None)


class TestLaidOverThePreset:
    def test_one_number_of_a_part(self):
        found = algorithm("algorithm.name=dapo", "algorithm.loss.clip_low=0.1")
        assert found.loss.model_dump() == {"kind": "ppo_clip", "clip_low": 0.1, "clip_high": 0.28}

    def test_one_number_of_the_penalty_keeps_where_it_stands(self):
        found = algorithm("algorithm.name=ppo", "algorithm.kl.coefficient=0.1").kl
        assert (found.placement, found.coefficient, found.estimator) == ("reward", 0.1, "k1")

    def test_the_same_kind_keeps_the_preset_s_other_numbers(self):
        assert algorithm("algorithm.name=dapo", "algorithm.loss.kind=ppo_clip").loss.clip_high == 0.28

    @pytest.mark.parametrize("order", [1, -1])
    def test_another_kind_has_its_own_in_whatever_order_it_was_typed(self, order):
        changes = ["algorithm.name=dapo", "algorithm.loss.kind=gspo", "algorithm.loss.clip_low=1e-3"][::order]
        assert algorithm(*changes).loss.model_dump() == {"kind": "gspo", "clip_low": 1e-3, "clip_high": 4e-4}

    def test_a_part_within_a_part(self):
        controller = "algorithm.kl.controller"
        changes = [f"{controller}.target=3", f"{controller}.kind=adaptive", "algorithm.kl.coefficient=0.2"]
        assert algorithm(*changes).kl.controller.model_dump() == {"kind": "adaptive", "target": 3.0, "horizon": 10000.0}

    def test_in_a_file(self):
        assert algorithm(text=RL.replace("grpo", "gspo, loss: {clip_high: 1e-3}")).loss.clip_low == 3e-4

    @pytest.mark.parametrize(
        ("change", "loss"),
        [
            ("{kind: gspo}", {"kind": "gspo", "clip_low": 3e-4, "clip_high": 4e-4}),
            ("{kind: ppo_clip}", {"kind": "ppo_clip", "clip_low": 0.2, "clip_high": 0.5}),
            ("{clip_low: 0.1}", {"kind": "ppo_clip", "clip_low": 0.1, "clip_high": 0.5}),
        ],
    )
    def test_over_a_file_that_leaves_the_kind_to_the_preset(self, change, loss):
        Path("base.yaml").write_text(RL.replace("grpo", "grpo, loss: {clip_high: 0.5}"))
        text = f"extends: base.yaml\nalgorithm: {{loss: {change}}}\n"
        assert algorithm(text=text).loss.model_dump() == loss

    def test_in_python(self):
        assert PRESETS["dapo"](name="dapo", loss={"clip_low": 0.1}).loss.clip_high == 0.28

    def test_the_resolved_recipe_reads_back(self):
        Path("r.yaml").write_text(RL)
        recipe = load("r.yaml", ["algorithm.name=dapo", "algorithm.kl.coefficient=0.1"])
        Path("again.yaml").write_text(to_yaml(recipe))
        assert load("again.yaml") == recipe


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # the keys of before
        (["algorithm.clip_high=0.3"], "algorithm.clip_high: `clip_high` is not a key of `algorithm`; did you mean `algorithm.loss.clip_high`?"),
        (["algorithm.kl_coefficient=0.1"], "algorithm.kl_coefficient: `kl_coefficient` is not a key of `algorithm`; did you mean `algorithm.kl.coefficient`?"),
        (["algorithm.scale_by_std=false"], "algorithm.scale_by_std: `scale_by_std` is not a key of `algorithm`; did you mean `algorithm.advantage.scale_by_std`?"),
        # keys and kinds
        (["algorithm.loss.clip_hihg=0.3"], "algorithm.loss.clip_hihg: `clip_hihg` is not a key of `algorithm.loss`; did you mean `algorithm.loss.clip_high`?"),
        (["algorithm.loss.bound=3"], "algorithm.loss.bound: `bound` does not go with `kind: ppo_clip` of `algorithm.loss`; it goes with `kind: dual_clip`"),
        (["algorithm.kl.controller.target=3"], "algorithm.kl.controller.target: `target` does not go with `kind: fixed` of `algorithm.kl.controller`; it goes with `kind: adaptive`"),
        (["algorithm.loss.kind=gpso"], "algorithm.loss.kind: expected one of `cispo`, `dual_clip`, `gspo`, `policy_gradient`, `ppo_clip`, found the text `gpso`; did you mean `gspo`?"),
        (["algorithm.loss=gspo"], "algorithm.loss: expected a section with `kind`: one of `cispo`, `dual_clip`, `gspo`, `policy_gradient`, `ppo_clip`, found the text `gspo`"),
        (["algorithm.loss.clip_high=-1"], "algorithm.loss.clip_high: expected a number of at least 0, found -1"),
        (["algorithm.loss={kind: dual_clip, bound: 1}"], "algorithm.loss.bound: expected a number above 1, found 1"),
        (["algorithm.shaping=[{kind: overlon}]"], "algorithm.shaping.0.kind: expected one of `clip`, `mask_truncated`, `overlong`, `truncation_penalty`, `whiten`, found the text `overlon`; did you mean `overlong`?"),
        (["algorithm.name=reinforce"], "algorithm.name: expected one of `cispo`, `dapo`, `dr_grpo`, `grpo`, `gspo`, `online_dpo`, `ppo`, `reinforce++`, `reinforce++_baseline`, `rloo`, found the text `reinforce`; did you mean `reinforce++`?"),
        # combinations
        (["algorithm.group_size=1"], "algorithm: group_size=1 leaves nothing to compare with for advantage.kind=group: sample 2 or more per prompt, or take an advantage that needs no group (gae, reinforce++, return)"),
        (["algorithm.name=dapo", "algorithm.advantage.kind=gae"], "algorithm: dynamic_sampling replaces groups whose rewards are all equal, but with group_size=16 and advantage.kind=gae they are learned from: set it to null"),
        (["algorithm.name=online_dpo", "algorithm.aggregation=token_mean"], "algorithm: aggregation=token_mean would make another gradient than DPO's of advantage.kind=dpo; leave it out, or set it to sequence_mean_token_sum"),
        (["algorithm.advantage.kind=dpo"], "algorithm: loss.kind=ppo_clip would make another gradient than DPO's of advantage.kind=dpo; leave it out, or set it to policy_gradient"),
        (["algorithm.name=online_dpo", "algorithm.kl={coefficient: 0.1, placement: reward}"], "algorithm: kl.placement=reward with advantage.kind=dpo: pairs are compared by their rewards, and the reference is in their loss already; raise advantage.beta, or set kl.placement to loss"),
        (["algorithm.name=online_dpo", "algorithm.group_size=1"], "algorithm: group_size=1 leaves nothing to compare with for advantage.kind=dpo: sample 2 or more per prompt, or take an advantage that needs no group (gae, reinforce++, return)"),
        (["algorithm.kl.controller.kind=adaptive"], "algorithm: kl.coefficient=0.0 stays 0 whatever kl.controller.kind=adaptive makes of it: give it a value to begin with"),
        (["algorithm.kl={coefficient: 0.1, estimator: k1}"], "algorithm: kl.estimator=k1 in the loss has a gradient of mean 0, which pulls nowhere: take k2 or k3, or kl.placement=reward"),
        (["algorithm.name=rloo", "train.epochs=2"], "train.minibatches=1 and train.epochs=2 train several times on a batch, which algorithm.loss.kind=policy_gradient cannot: it has no ratio. Set both to 1, or take ppo_clip"),
        (["algorithm.shaping=[{kind: overlong, buffer: 17}]"], "algorithm.shaping.0.buffer=17 exceeds the longest response of 16 tokens: every response would be punished; lower it or raise rollout.max_new_tokens"),
        (["algorithm.shaping=[{kind: clip, low: 2, high: 1}]"], "algorithm.shaping.0: low=2.0 is not below high=1.0: every reward would be the same"),
        (["algorithm.correction={kind: icepop, low: 6}"], "algorithm.correction: low=6.0 is not below high=5.0: no token would count"),
    ],
)  # fmt: skip
def test_message(changes, expected):
    assert message(*changes) == f"override `{changes[-1]}`: {expected}"


def test_in_a_stage_of_a_pipeline():
    stage = "".join(f"    {line}\n" for line in RL.splitlines())
    text = f"task: pipeline\nstages:\n  rl:\n{stage}"
    assert message("stages.rl.algorithm.loss.bound=3", text=text).endswith("it goes with `kind: dual_clip`")


def test_editors_accept_a_part_without_its_kind():
    loss = json_schema()["$defs"]["PpoClipLoss"]
    assert "required" not in loss and "anyOf" not in loss


def test_a_critic_that_nobody_asks_is_an_error():
    with pytest.raises(RecipeError, match=r"critic: algorithm.name=grpo has none.*take algorithm.name=ppo or leave"):
        load("arithmetic/grpo", ["model={scratch: qwen2}", "critic.warmup_steps=3"])
    assert load("arithmetic/grpo", ["algorithm.name=ppo", "critic.warmup_steps=3"]).critic.warmup_steps == 3


def test_the_longest_response_is_that_of_all_turns():
    """What the overlong penalty and Dr.GRPO's constant measure by: else every game of two guesses would be too long."""
    assert recipe().longest_response == 16
    game = recipe("environment={kind: guess_number, max_turns: 5}", "rollout.max_new_tokens=4")
    assert game.longest_response == 20
