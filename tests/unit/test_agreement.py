"""Agreement of labels with gold ones: literal values."""

import math

import pytest

from rlpipe.algorithms.agreement import Compared, accuracy, disagreement, kappa, length_bias, position_bias


def pair(preference, gold=None, longer=0, places=None):
    return Compared(preference, gold, longer, places)


def test_accuracy_counts_a_tie_of_the_judge_half_and_equals_not_at_all():
    pairs = [pair(0.9, 1.0), pair(0.2, 1.0), pair(0.5, -1.0), pair(0.1, -1.0), pair(0.9, 0.0), pair(0.9)]
    assert accuracy(pairs) == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert math.isnan(accuracy([pair(0.9)]))


def test_kappa_of_the_textbook():
    """Two raters on 50 items: 20 both yes, 15 both no, 5 and 10 split. p_o = 0.7, p_e = 0.5, kappa = 0.4."""
    pairs = [pair(1.0, 1.0)] * 20 + [pair(0.0, -1.0)] * 15 + [pair(1.0, -1.0)] * 5 + [pair(0.0, 1.0)] * 10
    assert kappa(pairs) == pytest.approx(0.4)


def test_kappa_is_one_for_full_agreement_and_nothing_where_it_means_nothing():
    assert kappa([pair(1.0, 2.0), pair(0.0, -0.1), pair(0.5, 0.0)]) == 1.0
    assert math.isnan(kappa([pair(1.0, 1.0)] * 3)), "both always say the same one thing"
    assert math.isnan(kappa([pair(1.0)]))


def test_a_judge_that_always_takes_the_first():
    pairs = [pair(0.5, 1.0, places=(1.0, 0.0))] * 4
    assert position_bias(pairs) == 1.0 and disagreement(pairs) == 1.0


def test_a_judge_that_does_not_look_at_places():
    pairs = [pair(0.8, places=(0.8, 0.8)), pair(0.3, places=(0.3, 0.3)), pair(0.9)]
    assert position_bias(pairs) == pytest.approx(0.0) and disagreement(pairs) == 0.0
    assert math.isnan(position_bias([pair(0.9)])), "nobody asked in both orders"


def test_length_bias_beyond_that_of_the_truth():
    long_wins, short_wins = pair(0.9, 1.0, longer=1), pair(0.9, 1.0, longer=-1)
    wrongly_long = pair(0.9, -1.0, longer=1)
    assert length_bias([long_wins, short_wins]) == 0.0
    assert length_bias([long_wins, short_wins, pair(0.9, 0.0, longer=1)]) == 0.0, "equals say nothing of the truth"
    assert length_bias([wrongly_long, long_wins]) == pytest.approx(1.0 - 0.5)
    assert length_bias([pair(0.9, longer=1)] * 3 + [pair(0.9, longer=-1)]) == pytest.approx(0.75 - 0.5)
    assert math.isnan(length_bias([pair(0.5, 1.0, longer=1), pair(0.9, 1.0)]))
