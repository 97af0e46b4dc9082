"""Engines on GPUs of their own, on the policy's, and split over several: what a recipe may say."""

# ruff: noqa: E501  (messages stand as people see them)

from pathlib import Path

import pytest
from small_recipe import RL

from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load
from rlpipe.recipe.transport import direct_transport


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
        (["placement=colocated", "rollout.nodes=spread"], "rollout.min_engines and rollout.nodes are for engines with places of their own, and with placement=colocated they are where the policy is; leave both out"),
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


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["publishing.transport=ipc"], "publishing.transport=ipc is for placement=colocated, and here it is split; set publishing.transport to nccl, or leave it out"),
        (["publishing.transport=nccl", "placement=colocated"], "publishing.transport=nccl is for placement=split, and here it is colocated; set publishing.transport to ipc, or leave it out"),
        (["publishing.transport=nccl", "rollout.engine=transformers"], "publishing.transport=nccl: rollout.engine=transformers takes weights from host memory only; set publishing.transport to object_store"),
        (["publishing.transport=nccl", "adapter.kind=lora"], "publishing.transport=nccl: adapters, served or merged, go over host memory; set publishing.transport to object_store"),
        (["publishing.transport=nccl", "rollout.resources.gpus=0"], "publishing.transport=nccl: policy and engines need whole GPUs, and rollout.resources.gpus=0 is none; set publishing.transport to object_store"),
    ],
)  # fmt: skip
def test_a_transport_that_has_no_way(overrides, expected):
    with pytest.raises(RecipeError) as caught:
        load("r.yaml", overrides)
    assert str(caught.value).endswith(expected)


def test_auto_takes_the_way_that_there_is():
    def way(*overrides):
        return direct_transport(load("r.yaml", overrides))

    assert (way(), way("placement=colocated")) == ("nccl", "ipc")
    for none in ("rollout.engine=transformers", "adapter.kind=lora", "train.resources.gpus=0"):
        assert way(none) is None
    assert way("train.resources.gpus=0.5", "rollout.resources.gpus=0.5") is None, "NCCL takes no GPU twice"
    assert way("publishing.transport=object_store") is None


def test_flash_attention_needs_half_precision():
    with pytest.raises(RecipeError) as caught:
        load("r.yaml", ["model={path: org/model, attn_implementation: flash_attention_2, dtype: float32}"])
    assert str(caught.value).endswith(
        "model: attn_implementation=flash_attention_2 computes in half precision, and dtype=float32 is not; set dtype to bfloat16, or attn_implementation to sdpa"
    )
    assert load("r.yaml").model.attn_implementation == "auto"
