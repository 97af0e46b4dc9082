"""Planning optimizer steps, padding, and that neither changes the gradient."""

from dataclasses import replace
from itertools import combinations, pairwise
from typing import get_args

import numpy as np
import pytest
import tiny_models
import torch
from online_algorithms import algorithm, weights_of_flat
from tiny_models import VOCABULARY

from rlpipe.algorithms.aggregate import Aggregation
from rlpipe.data.flow import TokenBatch
from rlpipe.training.forward import response_logprobs
from rlpipe.training.microbatch import collect, make_shards, plan_micro_batches, plan_step, split_minibatches
from rlpipe.training.padding import flatten, pad

CPU = torch.device("cpu")


def random_batch(count=14, seed=0, lengths=None):
    rng = np.random.default_rng(seed)
    lengths_B = rng.integers(4, 24, count) if lengths is None else np.array(lengths)
    offsets_B1 = np.concatenate([[0], np.cumsum(lengths_B)])
    mask_N = np.concatenate([np.arange(n) >= rng.integers(1, 4) for n in lengths_B]).astype(np.float32)
    random_N = rng.normal(size=offsets_B1[-1]).astype(np.float32)
    return TokenBatch(
        tokens_N=rng.integers(6, VOCABULARY, offsets_B1[-1]).astype(np.int32),
        offsets_B1=offsets_B1,
        mask_N=mask_N,
        behaviour_logprobs_N=-5 * mask_N,
        advantages_N=random_N * mask_N,
        old_logprobs_N=(-5.5 + 0.1 * random_N) * mask_N,
    )


def sequences_of(plan):
    return [s for rank in plan for micro_batch in rank for s in micro_batch]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("budget", [1, 30, 64, 10_000])
def test_every_sequence_once_within_the_budget_and_equally_many_micro_batches(ranks, budget):
    lengths_B = np.random.default_rng(1).integers(3, 40, 50)
    plan = plan_micro_batches(lengths_B, range(50), ranks, budget)
    assert sorted(sequences_of(plan)) == list(range(50))
    assert len({len(rank) for rank in plan}) == 1
    for rank in plan:
        for micro_batch in filter(None, rank):
            assert len(micro_batch) == 1 or len(micro_batch) * lengths_B[list(micro_batch)].max() <= budget
        assert [bool(m) for m in rank] == sorted((bool(m) for m in rank), reverse=True), "empty ones come last"


def test_balanced_by_tokens_and_sorted_by_length():
    lengths_B = np.array([8, 2, 2, 8, 8, 2, 8, 2])
    assert plan_micro_batches(lengths_B, range(8), 2, 16) == [((0, 4), (1, 5)), ((3, 6), (2, 7))]


def test_a_split_that_saves_less_padding_than_it_costs_is_not_made():
    lengths_B = np.array([8, 8, 8, 8, 2, 2])
    assert plan_micro_batches(lengths_B, range(6), 1, 64) == [((0, 1, 2, 3), (4, 5))]
    assert plan_micro_batches(lengths_B, range(6), 1, 6400) == [((0, 1, 2, 3, 4, 5),)]


@pytest.mark.parametrize("budget", [8, 24, 60, 200])
def test_no_cheaper_cut_is_missed(budget):
    lengths_B = np.random.default_rng(3).integers(2, 24, 10)
    ordered = sorted(lengths_B.tolist(), reverse=True)

    def cost(runs: list[list[int]]) -> float:
        fit = all(len(run) == 1 or len(run) * run[0] <= budget for run in runs)
        return sum(len(run) * run[0] + budget / 64 for run in runs) if fit else np.inf

    every_way = [
        [ordered[i:j] for i, j in pairwise([0, *ends, 10])] for n in range(10) for ends in combinations(range(1, 10), n)
    ]
    [cuts] = plan_micro_batches(lengths_B, range(10), 1, budget)
    assert cost([lengths_B[list(cut)].tolist() for cut in cuts]) == min(map(cost, every_way))


def test_balance_on_skewed_lengths():
    lengths_B = np.random.default_rng(2).geometric(0.01, 256) + 8
    plan = plan_micro_batches(lengths_B, range(256), 4, 4096)
    tokens = [sum(lengths_B[list(m)].sum() for m in rank) for rank in plan]
    padded = sum(len(m) * lengths_B[list(m)].max() for rank in plan for m in rank if m)
    assert max(tokens) - min(tokens) <= 16
    assert padded / sum(tokens) < 1.2


def test_more_ranks_than_sequences_gives_empty_micro_batches():
    assert plan_micro_batches(np.array([5, 3]), [0, 1], 3, 100) == [((0,),), ((1,),), ((),)]


def test_minibatches_keep_groups_whole_and_in_order():
    groups_B = np.array([5, 5, 2, 2, 9, 9, 5, 7])
    assert [part.tolist() for part in split_minibatches(groups_B, 2)] == [[0, 1, 2, 3, 6], [4, 5, 7]]
    assert [part.tolist() for part in split_minibatches(groups_B, 1)] == [list(range(8))]
    with pytest.raises(ValueError, match="4 groups cannot fill 5"):
        split_minibatches(groups_B, 5)


def test_shards_hold_their_own_sequences_with_all_their_columns():
    batch = random_batch()
    shards = plan_step(batch, range(3, 14), ranks=2, tokens_per_micro_batch=60, kl_coefficient=0.1)
    assert [shard.kl_coefficient for shard in shards] == [0.1, 0.1]
    assert all(shard.batch.columns_N.keys() == batch.columns_N.keys() for shard in shards)
    assert sum(len(shard.batch.tokens_N) for shard in shards) == batch.lengths_B[3:].sum()
    for shard in shards:
        ids = [s for micro_batch in shard.micro_batches for s in micro_batch]
        assert ids == list(range(len(shard.batch.lengths_B)))


def test_collect_undoes_the_sharding():
    batch = random_batch()
    plan = plan_micro_batches(batch.lengths_B, range(14), ranks=3, tokens_per_micro_batch=50)
    parts = [shard.batch.behaviour_logprobs_N * 1.5 for shard in make_shards(batch, plan)]
    np.testing.assert_array_equal(collect(batch, plan, parts), batch.behaviour_logprobs_N * 1.5)


def test_padding_and_back():
    batch = random_batch(lengths=[5, 2, 7])
    padded = pad(batch, [2, 1], CPU)
    assert padded.input_ids_BT.tolist()[1] == [*batch.tokens_N[5:7].tolist(), 0, 0, 0, 0, 0]
    assert padded.mask_BT[1, 2:].sum() == 0 and padded.reference_logprobs_BT is None
    flat = flatten(padded.advantages_BT, batch.lengths_B[[2, 1]])
    np.testing.assert_array_equal(flat, np.concatenate([batch.advantages_N[7:], batch.advantages_N[5:7]]))


def test_an_empty_micro_batch_is_one_row_of_padding():
    padded = pad(random_batch(), [], CPU)
    assert padded.input_ids_BT.shape[0] == 1 and not padded.mask_BT.any()
    assert flatten(padded.mask_BT, np.zeros(0, dtype=np.int64)).shape == (0,)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.load(tiny_models.save_model(tmp_path_factory.mktemp("model"))).eval()


SPLITS = [(1, 1), (1, 50), (2, 64), (3, 40), (16, 1000)]


def gradient(model, batch, algorithm, ranks, budget):
    """Of one optimizer step, added up over ranks and micro-batches as the training engine does."""
    model.zero_grad()
    total = 0.0
    for shard in plan_step(batch, range(len(batch.lengths_B)), ranks, budget):
        for micro_batch in shard.micro_batches:
            padded = pad(shard.batch, micro_batch, CPU)
            logprobs_BT, entropy_BT = response_logprobs(model, padded, 0.8, entropy_gradient=True)
            loss, _ = algorithm.loss(
                logprobs_BT=logprobs_BT,
                behaviour_logprobs_BT=padded.behaviour_logprobs_BT,
                advantages_BT=padded.advantages_BT,
                mask_BT=padded.mask_BT,
                weights_BT=padded.weights_BT,
                kl_coefficient=0.0,
                old_logprobs_BT=padded.old_logprobs_BT,
                entropy_BT=entropy_BT,
            )
            loss.backward()
            total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


def check_every_split(model, algorithm, splits=SPLITS):
    batch = random_batch()
    batch = replace(batch, weights_N=weights_of_flat(algorithm, batch))
    loss, whole = gradient(model, batch, algorithm, 1, 10_000)
    assert whole.abs().max() > 1e-4
    for ranks, budget in splits:
        other_loss, other = gradient(model, batch, algorithm, ranks, budget)
        scale = float(whole.abs().max())
        assert other_loss == pytest.approx(loss, abs=1e-6, rel=1e-5)
        torch.testing.assert_close(other / scale, whole / scale, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("aggregation", get_args(Aggregation))
def test_the_gradient_of_a_step_does_not_depend_on_the_split(model, aggregation):
    check_every_split(model, algorithm("grpo", aggregation=aggregation))


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("gspo", {"loss": {"clip_low": 0.2, "clip_high": 0.2}}),
        ("ppo", {"kl": {"coefficient": 0.0}, "entropy_coefficient": 0.1}),
        ("cispo", {"correction": {"kind": "sequence_mask", "low": 0.1, "high": 1e6}}),
    ],
)
def test_nor_with_what_looks_at_whole_sequences_or_at_the_entropy(model, preset, changes):
    check_every_split(model, algorithm(preset, **changes), SPLITS[1:4])
