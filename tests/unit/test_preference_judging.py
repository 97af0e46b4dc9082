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
from rlpipe.pipelines.offline.preference import _warn_of_balance, judged_table
from rlpipe.pipelines.offline.preference_judging import of_judged, of_pairs
from rlpipe.recipe.preference_training import CpoTraining, DpoLoss, DpoTraining, KtoTraining


def test_pairs_with_equal_rewards_count_one_half():
    found = of_pairs(torch.tensor([1.0, 0.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 2.0, 1.0]))
    assert found == {"pair_accuracy": 0.625, "pair_margin": 0.5}  # two won, one lost, one even


def test_single_responses_are_compared_each_with_each():
    rewards, good = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    # 3 beats both; 1 loses to 2 and is even with 1.
    assert of_judged(rewards, good) == {"pair_accuracy": 0.625, "pair_margin": 0.5}
    assert of_judged(rewards, torch.ones(4, dtype=torch.bool)) == {}


def test_many_responses_are_compared_as_few_are():
    generator = torch.Generator().manual_seed(0)
    rewards, good = torch.randn(5000, generator=generator), torch.rand(5000, generator=generator) < 0.5
    found = of_judged(rewards, good)["pair_accuracy"]
    assert found == pytest.approx((rewards[good][:, None] > rewards[~good]).float().mean().item(), abs=1e-6)


def kto(**settings):
    return KtoTraining(max_steps=1, **{"per_device_train_batch_size": 2, "ranks": 2, **settings})


def test_each_prompt_gets_the_response_of_its_neighbour_in_the_batch_of_all_ranks():
    judged = [Judged([i], [100 + i], i % 2 == 0, f"{i}") for i in range(10)]
    table = judged_table(judged, kto(), seed=0)
    columns = {name: [ids.tolist() for ids in ragged.apart()] for name, ragged in table.sequences.items()}
    own = [ids[0] for ids in columns["completion_ids"]]
    assert sorted(own) == list(range(100, 110)) != own
    assert [ids[0] + 100 for ids in columns["prompt_ids"]] == own
    batches = (own[:4], own[4:8], own[8:])
    assert [ids[0] for ids in columns["KL_completion_ids"]] == [x for b in batches for x in (b[-1], *b[:-1])]
    np.testing.assert_array_equal(table.values_B["label"], [x % 2 == 0 for x in own])


def test_without_an_estimate_of_the_kl_there_are_no_such_responses():
    table = judged_table([Judged([1], [2], True, "")], kto(loss_type="apo_zero_unpaired"), seed=0)
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
