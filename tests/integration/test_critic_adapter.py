"""A critic with an adapter, on a base model of its own or on the policy's, under real DeepSpeed."""

import dataclasses

import numpy as np
import pytest
import test_critic
import test_policy
import tiny_models
from test_critic import shards, train_alone, values_of
from test_policy import random_batch

from rlpipe.recipe.adapter import LoraAdapter
from rlpipe.training.critic import Critic, CriticSpec
from rlpipe.training.distributed import Rank
from rlpipe.training.metrics import merge
from rlpipe.training.microbatch import collect, make_shards, plan_micro_batches
from rlpipe.training.policy import Policy, PolicySpec

pytestmark = pytest.mark.integration

LORA = LoraAdapter(kind="lora", r=4, lora_alpha=16)
TRAINED = 8192 + 64
"""r (in + out) of every linear layer, and the value head."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tiny_models.save_model(tmp_path_factory.mktemp("model")))


def critic_spec(folder: str, stage: int = 0) -> CriticSpec:
    return dataclasses.replace(test_critic.spec(folder, stage), adapter=LORA)


def policy_spec(folder: str, stage: int = 0) -> PolicySpec:
    return test_policy.spec(folder, stage, adapter=LORA, lends_base=True)


class Together:
    """Policy and critic of one process, on one base model."""

    def __init__(self, specs: tuple[PolicySpec, CriticSpec], rank: Rank) -> None:
        policy, critic = specs
        self.policy = Policy(policy, rank)
        self.critic = Critic(critic, rank, self.policy)

    def update(self, policy_shard, critic_shard):
        return self.policy.update(policy_shard), self.critic.update(critic_shard)

    def values(self, shard):
        return self.critic.values(shard)


def parameters_of(role) -> dict:
    """Copies of the trained ones."""
    return {n: p.detach().clone() for n, p in role._engine.model.named_parameters() if p.requires_grad}


def moved(role, before: dict) -> set[str]:
    after = parameters_of(role)
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.fixture(scope="module")
def alone(folder):
    """Metrics of three steps on a base model of its own, and the values after them."""
    critic = Critic(critic_spec(folder), Rank())
    return train_alone(critic), values_of(critic, random_batch(5))


def test_only_adapter_and_value_head_are_trained(folder):
    critic = Critic(critic_spec(folder), Rank())
    assert critic.sizes() == (TRAINED, 91072 + TRAINED)
    assert not values_of(critic, random_batch(5)).any(), "a new head says 0"
    frozen = {n: p.detach().clone() for n, p in critic._engine.model.named_parameters() if not p.requires_grad}
    before = parameters_of(critic)
    train_alone(critic, range(2))
    assert moved(critic, before) == set(before), "the adapter from the second step on, when the head says something"
    assert all(np.array_equal(p.detach(), frozen[n]) for n, p in critic._engine.model.named_parameters() if n in frozen)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_in_this_process(folder, alone, stage):
    critic = Critic(critic_spec(folder, stage), Rank())
    metrics = train_alone(critic)
    test_critic.assert_same_run(metrics, values_of(critic, random_batch(5)), alone)


@pytest.mark.parametrize("stage", [0, 2])
def test_the_base_is_held_once_and_each_changes_its_own_alone(folder, stage):
    both = Together((policy_spec(folder, stage), critic_spec(folder, stage)), Rank())
    held = [{p.data_ptr() for p in role._engine.model.parameters() if not p.requires_grad} for role in
            (both.policy, both.critic)]  # fmt: skip
    assert held[0] == held[1] and len(held[0]) > 20
    shard = test_policy.shards(5, 1)[0]
    train_alone(both.critic, [7])  # so that the values are not all 0
    logprobs, values = both.policy.logprobs(shard), both.critic.values(shard)
    theirs, own = parameters_of(both.policy), parameters_of(both.critic)
    both.critic.update(shards(0, 1)[0])
    np.testing.assert_allclose(both.policy.logprobs(shard), logprobs, rtol=0, atol=1e-6)
    assert moved(both.policy, theirs) == set() and moved(both.critic, own) == set(own)
    changed = both.critic.values(shard)
    assert np.abs(changed - values).max() > 1e-3
    own = parameters_of(both.critic)
    for seed in range(2):
        both.policy.update(test_policy.shards(seed, 1)[0])
    np.testing.assert_allclose(both.critic.values(shard), changed, rtol=0, atol=1e-6)
    assert moved(both.critic, own) == set() and moved(both.policy, theirs) == set(theirs)
    assert np.abs(both.policy.logprobs(shard) - logprobs).max() > 1e-3


@pytest.mark.parametrize("stage", [0, 2])
def test_they_learn_what_they_learn_apart(folder, alone, stage):
    """The same numbers as a critic and a policy that each have a model of their own."""
    both = Together((policy_spec(folder, stage), critic_spec(folder, stage)), Rank())
    updates = [both.update(test_policy.shards(seed, 1)[0], shards(seed, 1)[0]) for seed in range(3)]
    values = values_of(both.critic, random_batch(5))
    test_critic.assert_same_run([merge([critic]) for _, critic in updates], values, alone)
    apart = Policy(test_policy.spec(folder, adapter=LORA), Rank())
    test_policy.train_alone(apart)
    shard = test_policy.shards(5, 1)[0]
    np.testing.assert_allclose(both.policy.logprobs(shard), apart.logprobs(shard), atol=1e-5)
    np.testing.assert_allclose(both.policy.reference_logprobs(shard), apart.reference_logprobs(shard), atol=1e-6)


@pytest.mark.parametrize("stage", [0, 2])
def test_two_ranks_learn_what_one_does(folder, alone, pair, stage):
    pair.build(Together, (policy_spec(folder, stage), critic_spec(folder, stage)))
    parts = [pair.call("update", test_policy.shards(seed, 2), shards(seed, 2)) for seed in range(3)]
    metrics = [merge([critic for _, critic in part]) for part in parts]
    batch = random_batch(5)
    plan = plan_micro_batches(batch.lengths_B, range(9), 2, 64)
    test_critic.assert_same_run(metrics, collect(batch, plan, pair.call("values", make_shards(batch, plan))), alone)


@pytest.mark.parametrize("stage", [0, 2])
def test_on_a_shared_base_it_goes_on_bit_equal(folder, stage, tmp_path):
    specs = policy_spec(folder, stage), critic_spec(folder, stage)
    first = Together(specs, Rank())
    train_alone(first.critic, range(2))
    first.critic.save_state(str(tmp_path))
    expected = train_alone(first.critic, range(2, 4))
    second = Together(specs, Rank())
    second.critic.load_state(str(tmp_path))
    assert train_alone(second.critic, range(2, 4)) == expected
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.pt")) < 91072 * 4, "the base is not in it"


def test_a_policy_that_lends_nothing_says_so(folder):
    policy = Policy(test_policy.spec(folder, adapter=LORA), Rank())
    with pytest.raises(ValueError, match="lends_base=True"):
        Critic(critic_spec(folder), Rank(), policy)
