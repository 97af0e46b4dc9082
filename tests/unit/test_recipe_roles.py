"""Adapters and the settings of each role in a recipe, and what cannot work."""

# ruff: noqa: E501  (messages stand as people see them)

from pathlib import Path

import pytest

from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load
from rlpipe.recipe.resolved import to_yaml

RL = """\
task: rl
model: {scratch: qwen2}
data: {kind: arithmetic}
rewards: {mix: [{kind: exact}]}
algorithm: {name: ppo}
schedule: {steps: 3}
"""


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RL)


def message(*overrides):
    with pytest.raises(RecipeError) as caught:
        load("r.yaml", overrides)
    return str(caught.value)


def test_an_adapter_has_peft_s_names_and_survives_being_written():
    recipe = load("r.yaml", ["adapter={kind: lora, r: 8}", "adapter.target_modules=[q_proj, v_proj]"])
    assert recipe.adapter.model_dump() == {
        "kind": "lora", "r": 8, "lora_alpha": 32, "use_rslora": False, "lora_dropout": 0.0,
        "target_modules": ["q_proj", "v_proj"],
    }  # fmt: skip
    Path("again.yaml").write_text(to_yaml(recipe))
    assert load("again.yaml") == recipe
    assert load("r.yaml").adapter is None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["adapter.r=8"], "override `adapter.r=8`: adapter.kind: missing; expected `lora` (Low-rank adaptation)"),
        (["adapter={kind: lora, alpha: 8}"], "override `adapter={kind: lora, alpha: 8}`: adapter.alpha: `alpha` is not a key of `adapter`; its keys are kind, r, lora_alpha, use_rslora, lora_dropout, target_modules"),
        (["adapter={kind: lora, lora_dropout: 0.1}"], "override `adapter={kind: lora, lora_dropout: 0.1}`: adapter.lora_dropout=0.1 would make the policy that is trained another one than the policy that sampled; set it to 0 in RL"),
        (["publishing.adapter=merged"], "override `publishing.adapter=merged`: publishing.adapter=merged says how an adapter reaches the engines, and there is none: give one (adapter.kind=lora), or leave the key out"),
    ],
)  # fmt: skip
def test_what_cannot_work_says_so(overrides, expected):
    assert message(*overrides) == expected
