"""The critic under real DeepSpeed: what its values mean, that it learns, and that ranks and stages change nothing."""

import dataclasses

import numpy as np
import pytest
import tiny_models
import torch
from test_policy import OPTIMIZER, STAGES, random_batch
from transformers import AutoModelForSequenceClassification

from rlpipe.models.classifier import load_classifier
from rlpipe.recipe.model import PretrainedModel
from rlpipe.training.critic import Critic, CriticSpec
from rlpipe.training.distributed import Rank
from rlpipe.training.metrics import merge
from rlpipe.training.microbatch import collect, make_shards, plan_micro_batches, plan_step
from rlpipe.training.sharding import Sharding

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> str:
    return str(tiny_models.save_model(tmp_path_factory.mktemp("lm")))


@pytest.fixture(scope="module")
def folder(language_model, tmp_path_factory) -> str:
    """A reward model with opinions."""
    path = tmp_path_factory.mktemp("rm")
    spec = PretrainedModel(path=language_model)
    load_classifier(spec, language_model, torch.float32, 0, head_seed=1, head_scale=5.0).save_pretrained(path)
    return str(path)


def spec(folder: str, zero_stage: int = 0, **settings) -> CriticSpec:
    model = PretrainedModel(path=folder)
    return CriticSpec(model, folder, 5, OPTIMIZER, "float32", Sharding(zero_stage), **settings)


def batch_with_returns(seed: int):
    batch = random_batch(seed)
    rng = np.random.default_rng(100 + seed)
    values, returns = (rng.normal(size=len(batch.tokens_N)).astype(np.float32) * batch.mask_N for _ in range(2))
    return dataclasses.replace(batch, values_N=values, returns_N=returns)


def shards(seed: int, ranks: int):
    return plan_step(batch_with_returns(seed), range(9), ranks, tokens_per_micro_batch=64)


def values_of(critic: Critic, batch, budget: int = 64) -> np.ndarray:
    plan = plan_micro_batches(batch.lengths_B, range(9), 1, budget)
    return collect(batch, plan, [critic.values(make_shards(batch, plan)[0])])


def train_alone(critic: Critic, seeds=range(3)) -> list[dict[str, float]]:
    return [merge([critic.update(shards(seed, 1)[0])]) for seed in seeds]


@pytest.fixture(scope="module")
def alone(folder):
    """Metrics of three steps of one rank at stage 0, and the values after them."""
    critic = Critic(spec(folder), Rank())
    return train_alone(critic), values_of(critic, random_batch(5))


@torch.no_grad()
def expected_values(folder: str, batch) -> np.ndarray:
    """Of each response token: the classifier's score of everything before it, cut there."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    values_N = np.zeros(len(batch.tokens_N), np.float32)
    for b in range(len(batch.lengths_B)):
        start, end = batch.offsets_B1[b : b + 2]
        for t in range(start, end):
            if batch.mask_N[t]:
                values_N[t] = model(torch.from_numpy(batch.tokens_N[None, start:t].astype(np.int64))).logits.item()
    return values_N


@pytest.mark.parametrize("budget", [32, 64, 4096])
def test_a_value_is_the_score_of_what_stands_before_the_token(folder, budget):
    """So it depends neither on the rest of the response nor on the rest of the batch."""
    batch = random_batch(5)
    ours = values_of(Critic(spec(folder), Rank()), batch, budget)
    np.testing.assert_allclose(ours, expected_values(folder, batch), atol=1e-5)
    assert ours[batch.mask_N > 0].std() > 0.1, "they do differ"


def test_a_new_critic_says_nothing(language_model):
    critic = Critic(spec(language_model), Rank())
    assert not values_of(critic, random_batch(5)).any()
    train_alone(critic, [0])
    assert values_of(critic, random_batch(5)).any()


def test_the_loss_is_half_the_squared_error_over_response_tokens(folder):
    batch = batch_with_returns(0)
    critic = Critic(spec(folder), Rank())
    error_N = (batch.returns_N - values_of(critic, batch))[batch.mask_N > 0]
    metrics = train_alone(critic, [0])[0]
    returns_N = batch.returns_N[batch.mask_N > 0]
    assert metrics["value/loss"] == pytest.approx(0.5 * np.square(error_N).mean(), rel=1e-5)
    assert metrics["value/explained_variance"] == pytest.approx(1 - error_N.var() / returns_N.var(), rel=1e-4)
    assert metrics["value/clip_fraction"] == 0


def test_it_learns_returns_by_heart(language_model):
    """Every token of a sequence returns its sequence's number: after 60 steps the critic knows most of it."""
    batch = random_batch(0)
    numbers_N = np.repeat(np.linspace(-1, 1, 9, dtype=np.float32), batch.lengths_B)
    batch = dataclasses.replace(batch, returns_N=numbers_N * batch.mask_N)
    optimizer = OPTIMIZER.model_copy(update={"lr_scheduler_type": "constant", "adam_epsilon": 1e-8})
    critic = Critic(dataclasses.replace(spec(language_model), optimizer=optimizer), Rank())
    shard = plan_step(batch, range(9), 1, 4096)[0]
    steps = [merge([critic.update(shard)]) for _ in range(60)]
    assert steps[0]["value/explained_variance"] == pytest.approx(0, abs=1e-6)  # it says 0 everywhere
    assert steps[-1]["value/loss"] < 0.2 * steps[0]["value/loss"]
    assert steps[-1]["value/explained_variance"] > 0.8


def test_weights_say_what_counts(folder):
    """Weighing every response token with 1 / tokens is the mean; weighing one alone learns from that one alone."""
    batch = batch_with_returns(0)
    uniform = dataclasses.replace(batch, weights_N=batch.mask_N / batch.mask_N.sum())
    first = dataclasses.replace(batch, weights_N=np.zeros_like(batch.mask_N))
    first.weights_N[np.flatnonzero(batch.mask_N)[0]] = 1.0
    norms = []
    for one in (batch, uniform, first):
        critic = Critic(spec(folder), Rank())
        norms.append(merge([critic.update(plan_step(one, range(9), 1, 64)[0])])["critic/grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert norms[2] != pytest.approx(norms[0], rel=1e-2)


def test_clipping_holds_a_value_near_its_old_one(folder):
    batch = batch_with_returns(0)
    critic = Critic(spec(folder, value_clip=0.1), Rank())
    now_N = values_of(critic, batch)
    # Every value stands 0.5 beyond its old one, away from which the return lies further: nothing may move.
    far = dataclasses.replace(batch, values_N=now_N - 0.5 * batch.mask_N, returns_N=now_N + 1.0 * batch.mask_N)
    metrics = merge([critic.update(plan_step(far, range(9), 1, 64)[0])])
    assert metrics["value/clip_fraction"] == 1.0
    assert metrics["critic/grad_norm"] == pytest.approx(0.0, abs=1e-6)


def test_a_batch_without_returns_is_an_error(folder):
    with pytest.raises(ValueError, match="needs `returns_N`"):
        Critic(spec(folder), Rank()).update(plan_step(random_batch(0), range(9), 1, 64)[0])


def assert_same_run(metrics, values, alone):
    for ours, theirs in zip(metrics, alone[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(values, alone[1], atol=1e-5)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_every_stage_in_this_process(folder, alone, stage):
    critic = Critic(spec(folder, stage), Rank())
    metrics = train_alone(critic)
    assert_same_run(metrics, values_of(critic, random_batch(5)), alone)


def test_gradient_checkpointing_changes_nothing_but_memory(folder, alone):
    critic = Critic(spec(folder, gradient_checkpointing=True), Rank())
    calls = []
    critic._engine.model.backbone.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    metrics = train_alone(critic)
    assert len(calls) == 2 * sum(len(shards(seed, 1)[0].micro_batches) for seed in range(3))
    assert_same_run(metrics, values_of(critic, random_batch(5)), alone)


def test_a_new_process_goes_on_bit_equal(folder, tmp_path):
    first = Critic(spec(folder, 2), Rank())
    train_alone(first, range(2))
    first.save_state(str(tmp_path))
    expected = train_alone(first, range(2, 4)), values_of(first, random_batch(5))
    second = Critic(spec(folder, 2), Rank())
    second.load_state(str(tmp_path))
    assert train_alone(second, range(2, 4)) == expected[0]
    assert np.array_equal(values_of(second, random_batch(5)), expected[1])


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_train_as_one_does(folder, alone, pair, stage):
    pair.build(Critic, spec(folder, stage))
    assert any(() in shard.micro_batches for seed in range(3) for shard in shards(seed, 2))
    metrics = [merge(pair.call("update", shards(seed, 2))) for seed in range(3)]
    batch = random_batch(5)
    plan = plan_micro_batches(batch.lengths_B, range(9), 2, 64)
    assert_same_run(metrics, collect(batch, plan, pair.call("values", make_shards(batch, plan))), alone)
