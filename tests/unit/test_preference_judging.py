"""What rewards say of held-out records, and how KTO's data is laid out."""

import inspect
import logging
import re
from typing import get_args

import numpy as np
import pytest
import torch
import trl
from trl.experimental.cpo import CPOTrainer

from rlpipe.data.responses import Judged
from rlpipe.pipelines.offline.dpo_worker import losses
from rlpipe.pipelines.offline.length_baseline import length_baseline
from rlpipe.pipelines.offline.preference import _shuffled, _warn_of_balance, judged_table
from rlpipe.pipelines.offline.preference_judging import clustered_stderr, of_judged, of_pairs
from rlpipe.pipelines.offline.table import Table
from rlpipe.recipe.preference_training import CpoTraining, DpoLoss, DpoTraining, KtoTraining


def test_pairs_with_equal_rewards_count_one_half():
    rewards = torch.tensor([1.0, 0.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 2.0, 1.0])
    found = of_pairs(np.arange(4))(*rewards)
    stderr = pytest.approx((2 * 0.375**2 + 0.625**2 + 0.125**2) ** 0.5 / 4)
    assert found == {"pair_accuracy": 0.625, "pair_accuracy_stderr": stderr, "pair_margin": 0.5}


def test_pairs_of_one_prompt_count_as_one_observation():
    """Four wins and four losses: sqrt(1/4 / 8) if independent, sqrt(1/4 / 2) if they are two prompts' same four."""
    won = np.array([1.0] * 4 + [0.0] * 4)
    assert clustered_stderr(won, np.arange(8)) == pytest.approx((0.25 / 8) ** 0.5)
    assert clustered_stderr(won, np.array([0] * 4 + [1] * 4)) == pytest.approx((0.25 / 2) ** 0.5)
    assert clustered_stderr(won, np.array([0, 1, 2, 3] * 2)) == 0.0, "each prompt has one of both: the mean is sure"


def test_single_responses_are_compared_each_with_each():
    rewards, good = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    # 3 beats both; 1 loses to 2 and is even with 1.
    found = of_judged(np.arange(4))(rewards, good)
    assert (found["pair_accuracy"], found["pair_margin"]) == (0.625, 0.5)
    # The good ones beat 1 and 1/4 of the bad; the bad ones are beaten by 1/2 and 3/4 of the good.
    assert found["pair_accuracy_stderr"] == pytest.approx((2 * (0.375 / 2) ** 2 + 2 * (0.125 / 2) ** 2) ** 0.5)
    assert of_judged(np.arange(4))(rewards, torch.ones(4, dtype=torch.bool)) == {}


def test_a_good_and_a_bad_response_to_one_prompt_are_no_independent_evidence():
    """Effects of one prompt add up before they are squared: 3/16 and 1/16, -3/16 and -1/16."""
    rewards, good = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    # 3 beats both, and is worth +3/16; 1 beats 1/4 of them, -3/16; 2 is beaten by a half, -1/16; 1 by 3/4, +1/16.
    found = of_judged(np.array([0, 1, 0, 1]))(rewards, good)
    assert found["pair_accuracy_stderr"] == pytest.approx(((3 / 16 - 1 / 16) ** 2 * 2) ** 0.5)


def test_the_error_of_many_comparisons_is_their_spread_over_samples():
    """400 samples of 40 good and 60 bad responses: the estimate is what their accuracies vary by."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        rewards, good = torch.from_numpy(rng.normal(size=100)), torch.arange(100) < 40
        found.append(of_judged(np.arange(100))(rewards + 0.5 * good, good))
    spread = np.std([one["pair_accuracy"] for one in found])
    assert np.mean([one["pair_accuracy_stderr"] for one in found]) == pytest.approx(spread, rel=0.1)


def pairs(*lengths):
    sides = {"chosen_ids": [[0] * chosen for chosen, _ in lengths], "rejected_ids": [[0] * bad for _, bad in lengths]}
    return Table.of(sides)


def test_the_baseline_takes_the_better_of_its_two_rules_and_halves_ties():
    assert length_baseline(pairs((3, 2), (5, 2), (1, 4), (2, 2))) == 2.5 / 4
    assert length_baseline(pairs((2, 3), (2, 5))) == 1.0
    assert length_baseline(pairs((2, 2), (3, 3))) == 0.5


def test_the_baseline_of_single_responses_compares_each_with_each():
    responses = {"completion_ids": [[0] * length for length in (5, 1, 3)]}
    # The bad one of 3 tokens is shorter than the good one of 5 and longer than that of 1.
    assert length_baseline(Table.of(responses, {"label": np.array([True, True, False])})) == 0.5
    assert length_baseline(Table.of(responses, {"label": np.array([True, False, False])})) == 1.0
    assert length_baseline(Table.of(responses, {"label": np.array([True] * 3)})) == 0.5


def test_many_responses_are_compared_as_few_are():
    generator = torch.Generator().manual_seed(0)
    rewards, good = torch.randn(5000, generator=generator), torch.rand(5000, generator=generator) < 0.5
    found = of_judged(np.arange(5000))(rewards, good)["pair_accuracy"]
    assert found == pytest.approx((rewards[good][:, None] > rewards[~good]).float().mean().item(), abs=1e-6)


def kto(**settings):
    return KtoTraining(max_steps=1, **{"per_device_train_batch_size": 2, "ranks": 2, **settings})


def test_each_prompt_gets_the_response_of_its_neighbour_in_the_batch_of_all_ranks():
    judged = [Judged([i], [100 + i], i % 2 == 0, f"{i}") for i in range(10)]
    table = judged_table(_shuffled(judged, seed=0), kto())
    columns = {name: [ids.tolist() for ids in ragged.apart()] for name, ragged in table.sequences.items()}
    own = [ids[0] for ids in columns["completion_ids"]]
    assert sorted(own) == list(range(100, 110)) != own
    assert [ids[0] + 100 for ids in columns["prompt_ids"]] == own
    batches = (own[:4], own[4:8], own[8:])
    assert [ids[0] for ids in columns["KL_completion_ids"]] == [x for b in batches for x in (b[-1], *b[:-1])]
    np.testing.assert_array_equal(table.values_B["label"], [x % 2 == 0 for x in own])


def test_without_an_estimate_of_the_kl_there_are_no_such_responses():
    table = judged_table([Judged([1], [2], True, "")], kto(loss_type="apo_zero_unpaired"))
    assert table.sequences.keys() == {"prompt_ids", "completion_ids"}


@pytest.mark.parametrize(
    ("good", "weights", "warned"),
    [(4, {}, True), (5, {}, False), (2, {"desirable_weight": 4.0}, False), (2, {"undesirable_weight": 0.25}, False)],
)
def test_unequal_numbers_want_weights(good, weights, warned, caplog):
    judged = [Judged([1], [2], i < good, "") for i in range(10)]
    with caplog.at_level(logging.WARNING):
        _warn_of_balance(judged, kto(**weights))
    assert ("KTO's authors want 1 to 4/3" in caplog.text) == warned


def test_smoothed_sigmoid_is_conservative_dpo_by_trl_s_losses():
    """s and t are -log sigmoid of the margin and of its negative."""
    settings = losses(
        DpoTraining(max_steps=1, loss_type=["sigmoid", "sft"], loss_weights=[2.0, 1.0], label_smoothing=0.1)
    )
    assert settings["loss_type"] == ["sigmoid", "sft", "robust"]
    weights = dict(zip(settings["loss_type"], settings["loss_weights"], strict=True))
    s, t = 0.3, 1.4
    robust = (0.9 * s - 0.1 * t) / 0.8
    assert weights["sigmoid"] * s + weights["robust"] * robust == pytest.approx(2.0 * (0.9 * s + 0.1 * t))
    assert weights["sft"] == 1.0


def test_other_losses_are_trl_s_own():
    assert losses(DpoTraining(max_steps=1, loss_type="robust", label_smoothing=0.1)) == {
        "loss_type": ["robust"],
        "loss_weights": [1.0],
    }


@pytest.mark.parametrize(
    ("trainer", "names"),
    [
        (trl.DPOTrainer._compute_loss, get_args(DpoLoss)),
        (trl.KTOTrainer._compute_loss, get_args(KtoTraining.model_fields["loss_type"].annotation)),
        (CPOTrainer.cpo_loss, get_args(CpoTraining.model_fields["loss_type"].annotation)),
    ],
)
def test_the_losses_are_those_that_trl_has(trainer, names):
    known = re.findall(r'loss_type == "(\w+)"', inspect.getsource(trainer))
    assert set(names) == set(known)
