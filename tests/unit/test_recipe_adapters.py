"""Adapters that do not merge into weights, in recipes: what they cannot do, and what to write instead."""

# ruff: noqa: E501  (messages stand as people see them)

from pathlib import Path

import pytest

from rlpipe.recipe.adapter import UNMERGEABLE
from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load

PROMPT = "adapter.kind=prompt_tuning"
PREFIX = "adapter.kind=prefix_tuning"
HERE = "rollout.engine=transformers"


def message(recipe, *changes):
    with pytest.raises(RecipeError) as caught:
        load(recipe, changes)
    return str(caught.value)


@pytest.mark.parametrize("kind", UNMERGEABLE)
def test_vllm_cannot_answer_with_it(kind):
    expected = (
        f"override `adapter.kind={kind}`: adapter.kind={kind} cannot be merged into weights, and vLLM cannot serve it: set "
        "rollout.engine=transformers, or leave out rewards, without which no held-out prompts are answered"
    )
    for recipe in ("arithmetic/sft", "arithmetic/dpo"):
        assert message(recipe, f"adapter.kind={kind}") == expected
        assert load(recipe, [f"adapter.kind={kind}", HERE]).adapter.kind == kind
        assert load(recipe, [f"adapter.kind={kind}", "rewards=null"]).adapter.kind == kind


@pytest.mark.parametrize("kind", UNMERGEABLE)
def test_no_later_task_starts_from_it(kind):
    changes = [f"stages.sft.adapter.kind={kind}", f"stages.sft.{HERE}"]
    said = message("arithmetic/rlhf", *changes).splitlines()
    assert len(said) == 2 and said[0].endswith(
        ": stages.reward.model.path: `${stages.sft.model}` refers to no model: stage `sft` has adapter."
        f"kind={kind}, which cannot be merged into weights and leaves only an adapter; take a kind there that merges, such as lora"
    )
    assert "stages.ppo.model.path" in said[1]
    assert load("arithmetic/rlhf", ["stages.sft.adapter.kind=lora"]).stages["sft"].adapter.mergeable


@pytest.mark.parametrize("kind", UNMERGEABLE)
def test_neither_rl_nor_a_reward_model(kind):
    assert f"adapter.kind={kind} is for the offline tasks: it cannot be merged" in message(
        "arithmetic/grpo", f"adapter.kind={kind}"
    )
    assert f"adapter.kind={kind} cannot be merged into weights, and rewards load a reward model whole" in message(
        "arithmetic/reward_model", f"adapter.kind={kind}"
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([PROMPT, "train.packing=true"], "train.packing=true puts several records into one sequence, before which adapter.kind=prompt_tuning puts its virtual tokens once; set train.packing=false, or take adapter.kind=lora"),
        (["train.packing_strategy=bfd_split"], "train: packing_strategy=bfd_split changes nothing without packing; set packing=true, or leave it out"),
        ([PREFIX, "train.packing=true"], "before which adapter.kind=prefix_tuning puts its virtual tokens once"),
        ([PREFIX, "train.gradient_checkpointing=true"], "train.gradient_checkpointing=true computes layers again without the keys and values of adapter.kind=prefix_tuning; set it to false, or take adapter.kind=prompt_tuning or lora"),
        ([PROMPT, "adapter.prompt_tuning_init=TEXT"], "prompt_tuning_init=TEXT begins as a text; give prompt_tuning_init_text"),
        ([PROMPT, "adapter.prompt_tuning_init_text=hello"], "prompt_tuning_init_text changes nothing with prompt_tuning_init=SAMPLE_VOCAB; set prompt_tuning_init=TEXT, or leave the text out"),
        ([PREFIX, "adapter.encoder_hidden_size=8"], "encoder_hidden_size is the width of the network of prefix_projection; set prefix_projection=true"),
    ],
)  # fmt: skip
def test_what_cannot_work_says_what_to_write_instead(changes, expected):
    assert expected in message("arithmetic/sft", HERE, *changes)


def test_what_can():
    assert load("arithmetic/sft", [HERE, PROMPT, "train.gradient_checkpointing=true", "train.zero_stage=3"])


def test_virtual_tokens_leave_room_for_others(tmp_path):
    from rlpipe.models.load import ModelError, materialise
    from rlpipe.pipelines.offline.launch import longest_sequence

    recipe = load("arithmetic/sft", [HERE, PROMPT, "adapter.num_virtual_tokens=250", "train.max_length=64"])
    base = materialise(recipe.model, 0, Path(tmp_path))
    assert longest_sequence(recipe, base) == 256 - 250
    full = load("arithmetic/sft", [HERE, PROMPT, "adapter.num_virtual_tokens=256"])
    with pytest.raises(ModelError, match="num_virtual_tokens=256 fills the context of 256 tokens"):
        longest_sequence(full, base)
