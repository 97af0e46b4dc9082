"""Intervals and tests: literal values, identities, and what they promise."""

import math
import time
from itertools import product

import numpy as np
import pytest

from rlpipe.algorithms.diversity import distinct_n, grams, self_overlap
from rlpipe.algorithms.intervals import bootstrap, ratio, wilson
from rlpipe.algorithms.paired_tests import mcnemar, sign_flip_test, sign_test, win_rate, win_rate_test
from rlpipe.algorithms.pass_at_k import pass_at_k


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one():
    assert pass_at_k(4, 1, 2) == pytest.approx(3 / 6)
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 1, 4) == 1.0
    with pytest.raises(ValueError, match="pass@4 needs 4 samples, there are 3"):
        pass_at_k(3, 1, 4)


@pytest.mark.parametrize(
    ("correct", "trials", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_has_the_published_values(correct, trials, low, high):
    assert wilson(correct, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_never_leaves_the_unit_interval():
    low, high = wilson(3, 10)
    assert wilson(7, 10) == pytest.approx((1 - high, 1 - low))
    assert wilson(10, 10).high == 1.0 and wilson(10, 10).low < 1
    assert all(map(math.isnan, wilson(0, 0)))


def test_the_bootstrap_of_a_mean_is_close_to_the_normal_interval_and_the_same_for_the_same_seed():
    values = np.random.default_rng(0).normal(2.0, 3.0, 400)
    mean = ratio(values, np.ones(400))
    found = bootstrap(mean, 400, seed=1)
    error = values.std() / math.sqrt(400)
    assert found == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.05)
    assert bootstrap(mean, 400, seed=1) == found != bootstrap(mean, 400, seed=2)


def test_the_bootstrap_holds_the_truth_about_as_often_as_it_says():
    held = 0
    for trial in range(200):
        values = np.random.default_rng(trial).exponential(1.0, 60)
        low, high = bootstrap(ratio(values, np.ones(60)), 60, seed=trial, confidence=0.9)
        held += low <= 1.0 <= high
    assert 0.82 <= held / 200 <= 0.95


def test_a_prompt_without_a_value_leaves_the_ratio():
    statistic = ratio(np.array([3.0, np.nan, 5.0]), np.array([1.0, 0.0, 3.0]))
    assert statistic(np.array([[0, 1, 2], [1, 1, 1]])).tolist()[0] == 2.0
    assert math.isnan(statistic(np.array([[1, 1, 1]]))[0])
    assert all(map(math.isnan, bootstrap(statistic, 0, seed=0)))


def test_the_sign_test_is_the_binomial_tail():
    assert sign_test(0, 5) == 2 / 32
    assert sign_test(1, 9) == 2 * (1 + 10) / 1024
    assert sign_test(1, 9, "worse") == (1 + 10) / 1024
    assert sign_test(9, 1, "worse") == pytest.approx(1023 / 1024)
    assert sign_test(4, 4) == 1.0 and sign_test(0, 0) == 1.0
    assert 0 <= sign_test(0, 3000) < 1e-300
    for n, tail in ((1, 0), (7, 3), (40, 12)):
        assert sign_test(tail, n - tail, "worse") == sum(math.comb(n, i) for i in range(tail + 1)) / 2**n


def test_the_sign_test_of_many_prompts_is_quick():
    """A share of a second; computing every binomial coefficient anew it would be minutes."""
    started = time.process_time()
    assert sign_test(9_900, 10_100) == pytest.approx(0.1593, abs=1e-3)  # 2 * (1 - Phi(199 / sqrt(20000)))
    assert time.process_time() - started < 5


def test_mcnemar_counts_only_where_they_differ():
    first = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
    second = np.array([1, 1, 0, 1, 1, 1, 1, 1, 1, 0])
    assert mcnemar(first, second) == sign_test(1, 6) == 2 * 8 / 128
    # scipy.stats.binomtest(1, 7).pvalue
    assert mcnemar(first, second) == pytest.approx(0.125)


def test_the_sign_flip_test_tries_all_signs():
    values = np.array([1.0, 2.0, 3.0, -0.5])
    sums = [sum(s * v for s, v in zip(signs, values, strict=True)) for signs in product((1, -1), repeat=4)]
    assert sign_flip_test(values, 0) == sum(abs(s) >= 5.5 for s in sums) / 16
    assert sign_flip_test(-values, 0, "worse") == sum(s <= -5.5 for s in sums) / 16
    assert sign_flip_test(np.zeros(3), 0) == 1.0
    assert math.isnan(sign_flip_test(np.array([1.0, np.nan]), 0)), "and not a p of 0"
    assert math.isnan(sign_flip_test(np.array([1.0, -np.inf]), 0, "worse"))


def test_of_ones_it_is_the_sign_test_drawn_or_exact():
    assert sign_flip_test(np.array([1.0] * 9 + [-1.0]), 0) == pytest.approx(sign_test(9, 1))
    many = np.array([1.0] * 40 + [-1.0] * 22)
    assert sign_flip_test(many, 0) == pytest.approx(sign_test(40, 22), abs=0.005)
    assert sign_flip_test(np.ones(60), 0) == 1 / 20_001


def test_under_the_null_p_is_seldom_small():
    found = [sign_flip_test(np.random.default_rng(i).normal(size=12), 0) for i in range(300)]
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.09


def test_win_rates_count_ties_half_and_their_test_leaves_them_out():
    wins = np.array([1, 1, 1, 1, 1, 0.5, 0.5, 0])
    assert win_rate(wins) == 6 / 8
    assert win_rate_test(wins, 0) == sign_test(5, 1)
    soft = np.array([0.9, 0.8, 0.7, 0.95])
    assert win_rate_test(soft, 0) == sign_flip_test(soft - 0.5, 0) == 2 / 16
    assert math.isnan(win_rate(np.array([])))


def test_diversity():
    assert grams("a b, c", 2) == [("a", "b"), ("b", ","), (",", "c")]
    assert grams("yes", 3) == [("yes",)] and grams("", 2) == []
    assert distinct_n(["a b c", "a b d"], 2) == 3 / 4
    assert distinct_n(["x", "x", "y"], 1) == pytest.approx(2 / 3)
    assert self_overlap(["a b c", "a b d"], 1) == pytest.approx(2 / 3)
    assert self_overlap(["a a a", "a"], 1) == pytest.approx((1 / 3 + 1) / 2)
    assert self_overlap(["same words", "same words"], 2) == 1.0
    assert math.isnan(self_overlap(["alone"], 1)) and math.isnan(distinct_n(["", " "], 1))


def test_scipy_says_the_same():
    """Where it is installed: rlpipe does not ask for it."""
    stats = pytest.importorskip("scipy.stats")
    for correct, trials in ((0, 7), (3, 11), (40, 64)):
        expected = stats.binomtest(correct, trials).proportion_ci(0.9, method="wilson")
        assert wilson(correct, trials, 0.9) == pytest.approx((expected.low, expected.high))
        assert sign_test(correct, trials - correct) == pytest.approx(stats.binomtest(correct, trials).pvalue)
        lower = stats.binomtest(correct, trials, alternative="less").pvalue
        assert sign_test(correct, trials - correct, "worse") == pytest.approx(lower)
    values = np.random.default_rng(5).normal(0.4, 1.0, 11)
    for side, alternative in (("two", "two-sided"), ("worse", "less")):
        expected = stats.permutation_test((values,), np.mean, permutation_type="samples", alternative=alternative)
        assert sign_flip_test(values, 0, side) == pytest.approx(expected.pvalue, abs=1e-3)
