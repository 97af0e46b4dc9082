"""Engines on GPUs of their own, on the policy's, and split over several: what a recipe may say."""

# ruff: noqa: E501  (messages stand as people see them)

from pathlib import Path

import pytest

from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load

RL = """\
task: rl
model: {scratch: qwen2}
data: {kind: arithmetic}
rewards: {mix: [{kind: exact}]}
algorithm: {name: grpo}
schedule: {steps: 3}
"""


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RL)


def test_engines_have_gpus_of_their_own_unless_the_recipe_says_otherwise():
    recipe = load("r.yaml")
    assert (recipe.placement, recipe.rollout.tensor_parallel) == ("split", 1)
    eight = load("r.yaml", ["placement=colocated", "train.ranks=8", "rollout={engines: 4, tensor_parallel: 2}"])
    assert (eight.placement, eight.rollout.tensor_parallel) == ("colocated", 2)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["placement=shared"], "override `placement=shared`: placement: expected one of `split`, `colocated`, found the text `shared`"),
        (["placement=colocated", "run.max_staleness=1", "algorithm.correction.kind=tis"], "run.max_staleness=1 samples while the policy trains, and with placement=colocated engines sleep then; set max_staleness to 0, or placement to split"),
        (["placement=colocated", "train.ranks=4"], "rollout.engines=1 x rollout.tensor_parallel=1 is 1, and train.ranks=4; make them equal"),
        (["placement=colocated", "rollout.tensor_parallel=2"], "rollout.engines=1 x rollout.tensor_parallel=2 is 2, and train.ranks=1; make them equal"),
        (["placement=colocated", "rollout.resources.gpus=0.5"], "rollout.resources.gpus=0.5: with placement=colocated engines reserve no GPUs, as they are on those of the policy; leave it out (train.resources.gpus says what is reserved)"),
        (["placement=colocated", "train.resources.gpus=0.5"], "train.resources.gpus=0.5: with placement=colocated each rank shares one whole GPU with an engine; leave it out (0 keeps both on the CPU)"),
        (["rollout={tensor_parallel: 2, engine: transformers}"], "rollout: tensor_parallel=2 splits a model over GPUs, which engine=transformers cannot; take engine=vllm, or leave tensor_parallel out"),
        (["rollout={tensor_parallel: 4, resources: {gpus: 2}}"], "rollout: resources.gpus=2 of an engine that tensor_parallel=4 splits over 4 GPUs; leave resources.gpus out, which reserves 4 (0 is for an engine on CPU)"),
        (["rollout.tensor_parallel=0"], "rollout.tensor_parallel: expected a whole number above 0, found 0"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_anything_starts(overrides, expected):
    with pytest.raises(RecipeError) as caught:
        load("r.yaml", overrides)
    assert str(caught.value).endswith(expected)
