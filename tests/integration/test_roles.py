"""Each role's own ranks, ZeRO stage and offload, and rest between turns: the numbers are the same with all of them."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import tiny_models
import torch
from test_policy import (
    STAGES,
    TEMPERATURE,
    assert_same_run,
    random_batch,
    shards,
    spec,
    train_alone,
    weights_of,
)

from rlpipe.models.classifier import load_classifier
from rlpipe.models.load import load_causal_lm
from rlpipe.recipe.model import PretrainedModel
from rlpipe.training.distributed import Rank
from rlpipe.training.metrics import merge
from rlpipe.training.microbatch import collect, make_shards, plan_micro_batches
from rlpipe.training.policy import Policy
from rlpipe.training.reference import Reference, ReferenceSpec
from rlpipe.training.reward_model import RewardModel, RewardModelSpec
from rlpipe.training.sharding import Sharding, loaded

pytestmark = pytest.mark.integration

FROZEN = [Sharding(), Sharding(offload_param=True), Sharding(3), Sharding(3, offload_param=True)]
OFFLOADED = [Sharding(1, True), Sharding(2, True), Sharding(3, True), Sharding(3, False, True), Sharding(3, True, True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tiny_models.save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def classifier(folder, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("rm")
    load_classifier(PretrainedModel(path=folder), folder, torch.float32, 0, head_seed=1).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def alone(folder):
    """Metrics and weights of three steps of one rank at stage 0."""
    policy = Policy(spec(folder), Rank())
    return train_alone(policy), weights_of(policy.export())


@pytest.fixture(scope="module")
def reference_alone(folder):
    batch = random_batch(5)
    plan = plan_micro_batches(batch.lengths_B, range(9), 1, 64)
    role = Reference(reference_spec(folder, Sharding()), Rank())
    return collect(batch, plan, [role.logprobs(make_shards(batch, plan)[0])])


def reference_spec(folder: str, sharding: Sharding) -> ReferenceSpec:
    return ReferenceSpec(PretrainedModel(path=folder), folder, TEMPERATURE, "float32", sharding)


@pytest.mark.parametrize("sharding", FROZEN, ids=str)
def test_two_ranks_of_a_reference_answer_as_one_does(folder, reference_alone, pair, sharding):
    pair.build(Reference, reference_spec(folder, sharding))
    batch = random_batch(5)
    plan = plan_micro_batches(batch.lengths_B, range(9), 2, 64)
    assert any(() in micro_batches for micro_batches in plan), "one rank is idle while the other computes"
    for _ in range(2):
        ours = collect(batch, plan, pair.call("logprobs", make_shards(batch, plan)))
        np.testing.assert_allclose(ours, reference_alone, atol=1e-6)


@pytest.mark.parametrize("sharding", FROZEN, ids=str)
def test_two_ranks_of_a_reward_model_answer_as_one_does(classifier, pair, sharding):
    rng = np.random.default_rng(0)
    sequences = [rng.integers(6, 262, n).astype(np.int32) for n in (5, 40, 2, 17, 1, 33, 8)]
    one = RewardModelSpec(classifier, 0, "float32", tokens_per_batch=64)
    expected = RewardModel(one, Rank()).score(sequences)
    pair.build(RewardModel, dataclasses.replace(one, sharding=sharding))
    for count in (7, 1, 0):  # of one sequence, one rank is idle
        shares = pair.call("score", [sequences[:count]] * 2)
        if sharding.zero_stage == 3:
            assert not np.logical_and(*shares).any(), "each scored its own"
            np.testing.assert_allclose(sum(shares), expected[:count], atol=1e-6)
        else:
            for share in shares:
                np.testing.assert_allclose(share, expected[:count], atol=1e-6)


@pytest.mark.parametrize("sharding", OFFLOADED, ids=str)
def test_offloading_changes_no_number(folder, alone, sharding):
    policy = Policy(dataclasses.replace(spec(folder), sharding=sharding), Rank())
    assert_same_run(train_alone(policy), weights_of(policy.export()), alone)


def test_offloading_on_two_ranks(folder, alone, pair):
    pair.build(Policy, dataclasses.replace(spec(folder), sharding=Sharding(3, True, True)))
    metrics = [merge(pair.call("update", shards(seed, 2))) for seed in range(3)]
    ours = weights_of(pair.call("export")[0])
    assert_same_run(metrics, ours, alone)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_that_rested_goes_on_as_if_it_had_not(folder, stage, dtype, tmp_path):
    """On a GPU it does so for the critic's turn; here the host memory is given back just the same."""
    never, rested = (Policy(dataclasses.replace(spec(folder, stage), dtype=dtype), Rank()) for _ in range(2))
    rested._engine._on_gpu = True
    for seed in range(3):
        expected = train_alone(never, [seed])
        assert train_alone(rested, [seed]) == expected
        rested.rest()
        away = rested._engine._needed_by_steps()
        assert away and all(t.untyped_storage().nbytes() == 0 for t in away)
        np.testing.assert_array_equal(rested.logprobs(shards(seed, 1)[0]), never.logprobs(shards(seed, 1)[0]))
        assert rested.export().digest == never.export().digest
    rested.save_state(str(tmp_path))
    assert train_alone(rested, [3]) == train_alone(never, [3])


def test_a_split_model_is_never_whole(folder, classifier):
    """It is split while it is loaded: each rank of a model that is too large for one GPU would not get further."""
    Policy(spec(folder), Rank())  # has DeepSpeed join
    loads = [
        partial(load_causal_lm, PretrainedModel(path=folder), folder, torch.float32),
        partial(load_classifier, PretrainedModel(path=classifier), classifier, torch.float32, 0),
    ]
    for model in (loaded(load, Sharding(3), torch.float32) for load in loads):
        assert all(parameter.numel() == 0 and parameter.ds_numel > 0 for parameter in model.parameters())
    whole = load_causal_lm(PretrainedModel(path=folder), folder, torch.float32)
    assert all(parameter.numel() > 0 for parameter in whole.parameters())


def test_a_split_model_has_its_frequencies_in_float32(folder):
    """As the whole one has, in bfloat16 too: the same answers to the last bit."""
    spec_of = partial(ReferenceSpec, PretrainedModel(path=folder), folder, TEMPERATURE, "bfloat16")
    whole, split = (Reference(spec_of(sharding), Rank()) for sharding in (Sharding(), Sharding(3)))
    shard = shards(0, 1)[0]
    np.testing.assert_array_equal(split.logprobs(shard), whole.logprobs(shard))
    policies = [Policy(dataclasses.replace(spec(folder, stage), dtype="bfloat16"), Rank()) for stage in (1, 3)]
    np.testing.assert_array_equal(*(policy.logprobs(shard) for policy in policies))
    buffers = dict(split._model._model.module.named_buffers())
    assert {buffer.dtype for buffer in buffers.values()} == {torch.float32} and buffers
