"""Whether one model is better than another on the same prompts, or was only lucky.

All tests are paired: what two models make of one prompt hangs on how hard it is, which a comparison of two means would
count as chance. Prompts on which both do the same say nothing about who is better, and leave a test.
"""

import math
from fractions import Fraction
from typing import Literal

import numpy as np

Side = Literal["two", "worse"]
"""`two`: they differ. `worse`: the first is worse than the second; a win of it is no evidence."""

EXACT = 16
"""Up to so many differences, all signs are tried; above, `DRAWS` of them are drawn."""
DRAWS = 20_000


def sign_test(better: int, worse: int, side: Side = "two") -> float:
    """Probability of so many prompts on one side, or more, if each were as likely on either: binomial with p = 1/2,
    ties left out. Exact. 1 where there are none.

    Dixon and Mood 1946, JASA 41:557. On right and wrong answers, `better` counting the prompts that only the first
    model has right and `worse` those that only the second has, it is McNemar's exact test (McNemar 1947, Psychometrika
    12:153).
    """
    n = better + worse
    tail = better if side == "worse" else min(better, worse)
    ways = term = 1
    for i in range(tail):  # C(n, i + 1) of C(n, i)
        term = term * (n - i) // (i + 1)
        ways += term
    low = Fraction(ways, 2**n)
    return float(min(Fraction(1), low if side == "worse" else 2 * low))


def mcnemar(right_N: np.ndarray, other_right_N: np.ndarray, side: Side = "two") -> float:
    """McNemar's exact test of two models' right (1) and wrong (0) answers to the same prompts."""
    first_N, second_N = np.asarray(right_N, bool), np.asarray(other_right_N, bool)
    return sign_test(int((first_N & ~second_N).sum()), int((~first_N & second_N).sum()), side)


def sign_flip_test(differences_N: np.ndarray, seed: int, side: Side = "two") -> float:
    """Probability of a mean so far from 0, or further, if the sign of each difference were a coin's: of all 2^N signs
    where N is small, else of drawn ones, the observed ones among them, so that it is never 0.

    Fisher 1935, The Design of Experiments, section 21; drawn: Phipson and Smyth 2010, SAGMB 9:39. For scores, which a
    sign test would rob of their size. 1 where every difference is 0; NaN where one is not finite.
    """
    values_N = np.asarray(differences_N, float)
    if not np.isfinite(values_N).all():
        return math.nan
    values_N = values_N[values_N != 0]
    if not len(values_N):
        return 1.0
    observed = values_N.sum()
    exact = len(values_N) <= EXACT
    sums_R = _all_sums(values_N) if exact else _drawn_sums(values_N, seed)
    slack = 1e-9 * np.abs(values_N).sum()  # sums of the same numbers in another order
    as_far_R = sums_R <= observed + slack if side == "worse" else np.abs(sums_R) >= abs(observed) - slack
    return float(as_far_R.mean()) if exact else float((as_far_R.sum() + 1) / (len(sums_R) + 1))


def _all_sums(values_N: np.ndarray) -> np.ndarray:
    sums = np.zeros(1)
    for value in values_N:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _drawn_sums(values_N: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // len(values_N))
    parts = (min(rows, DRAWS - start) for start in range(0, DRAWS, rows))
    return np.concatenate([(generator.integers(0, 2, (part, len(values_N))) * 2 - 1) @ values_N for part in parts])


def win_rate(wins_N: np.ndarray) -> float:
    """Mean of 1 for a win, 0 for a loss and 1/2 for a tie, or what is in between; NaN of nothing."""
    return float(np.mean(wins_N)) if len(wins_N) else float("nan")


def win_rate_test(wins_N: np.ndarray, seed: int, side: Side = "two") -> float:
    """Whether a win rate is other than 1/2 (`worse`: below it). A sign test where each prompt is won, lost or tied; a
    sign-flip test of the distances from 1/2 where some judgement is in between."""
    distances_N = np.asarray(wins_N, float) - 0.5
    if np.isin(distances_N, (-0.5, 0.0, 0.5)).all():
        return sign_test(int((distances_N > 0).sum()), int((distances_N < 0).sum()), side)
    return sign_flip_test(distances_N, seed, side)
