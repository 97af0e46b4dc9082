"""How sure a number is that was measured on a few prompts: intervals that hold the truth with a given confidence.

Axis names here: N prompts, R resamplings.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

RESAMPLINGS = 2000
_AT_ONCE = 4_000_000
"""Numbers drawn in one go, so that many prompts take no more memory."""


class Interval(NamedTuple):
    """Both ends; NaN where there was nothing to measure."""

    low: float
    high: float


NOTHING = Interval(math.nan, math.nan)


def wilson(correct: int, trials: int, confidence: float = 0.95) -> Interval:
    """Of a share c / n of right answers, each right or wrong:

        (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n),   p = c/n

    Wilson 1927, JASA 22:209. Unlike p ± z √(p(1-p)/n) it is no point at 0 or 1, and never leaves [0, 1].
    """
    if trials == 0:
        return NOTHING
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, denominator = correct / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / denominator
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / denominator
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], prompts: int, seed: int, confidence: float = 0.95
) -> Interval:
    """Of any statistic of prompts, by drawing as many prompts again with replacement, R times, and taking quantiles.

    `statistic` takes drawn prompts by index, RN, and gives a number for each drawing, R; NaN is left out. Whatever
    belongs to one prompt stays together: all samples of it, and the answers of two models to it, which makes the
    interval of their difference a paired one. Percentile method, Efron 1979, Annals of Statistics 7:1; over prompts and
    not samples, as samples of one prompt are no independent ones (Miller 2024, arXiv 2411.00640).
    """
    if prompts == 0:
        return NOTHING
    generator = np.random.default_rng(seed)
    found = []
    rows = max(1, min(RESAMPLINGS, _AT_ONCE // prompts))
    for start in range(0, RESAMPLINGS, rows):
        drawn_RN = generator.integers(0, prompts, (min(rows, RESAMPLINGS - start), prompts))
        found.append(statistic(drawn_RN))
    values_R = np.concatenate(found)
    values_R = values_R[np.isfinite(values_R)]
    if not len(values_R):
        return NOTHING
    rest = (1 - confidence) / 2
    return Interval(*(float(end) for end in np.quantile(values_R, (rest, 1 - rest))))


def ratio(numerators_N: np.ndarray, denominators_N: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The statistic sum of numerators / sum of denominators, for `bootstrap`: a mean over prompts where every
    denominator is 1, and a mean over tokens where they count those. A prompt with denominator 0 has nothing to say."""
    above_N = np.where(denominators_N > 0, numerators_N, 0.0)

    def statistic(drawn_RN: np.ndarray) -> np.ndarray:
        below_R = denominators_N[drawn_RN].sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(below_R > 0, above_N[drawn_RN].sum(axis=1) / below_R, np.nan)

    return statistic
