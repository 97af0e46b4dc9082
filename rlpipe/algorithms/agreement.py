"""How far labels agree with gold ones, and what else than quality they follow.

A comparison is a pair of responses: `preference` is the probability that the first one is better, by the judge; `gold`
is above 0 where the first one is truly better, below 0 where the second one is, 0 where they are equals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, slots=True)
class Compared:
    """One pair of responses, as a judge and as the truth have it."""

    preference: float
    """Probability, in [0, 1], that the first response is the better one; 0.5 is a tie."""
    gold: float | None
    """Positive, negative, or 0 for equals; None where nobody knows."""
    longer: int
    """1 if the first response is the longer one, -1 if the second is, 0 if neither."""
    first_place: tuple[float, float] | None = None
    """Where both orders were asked: the probability that the first response is better when it is shown first, and when
    it is shown second."""


def accuracy(pairs: Sequence[Compared]) -> float:
    """Share of the pairs with a better response that the judge ranks right; a tie of the judge counts half. NaN without
    such pairs."""
    return _mean([_right(pair) for pair in pairs if pair.gold])


def kappa(pairs: Sequence[Compared]) -> float:
    """Cohen's kappa of the judge's and the gold verdicts (first better, second better, tie): agreement beyond chance.

    kappa = (p_o - p_e) / (1 - p_e), p_o the share of equal verdicts, p_e = sum over verdicts of the product of the two
    raters' shares (Cohen 1960, Educational and Psychological Measurement 20(1), equation 1). NaN without gold pairs,
    and where both raters always say the same one thing.
    """
    said = [(_sign(pair.preference - 0.5), _sign(pair.gold)) for pair in pairs if pair.gold is not None]
    if not said:
        return math.nan
    observed = fmean(judge == gold for judge, gold in said)
    chance = sum(fmean(j == v for j, _ in said) * fmean(g == v for _, g in said) for v in (-1, 0, 1))
    return math.nan if chance == 1.0 else (observed - chance) / (1.0 - chance)


def position_bias(pairs: Sequence[Compared]) -> float:
    """By how much the judge's probability for a response rises when it is shown first, in the mean: 0 for a judge that
    does not look at places, 1 for one that always takes the first. NaN where no pair was asked in both orders."""
    return _mean([first - second for pair in pairs if pair.first_place for first, second in [pair.first_place]])


def disagreement(pairs: Sequence[Compared]) -> float:
    """Share of the pairs asked in both orders of which the judge prefers another response in the other order."""
    both = [pair.first_place for pair in pairs if pair.first_place]
    return _mean([float(_sign(first - 0.5) * _sign(second - 0.5) < 0) for first, second in both])


def length_bias(pairs: Sequence[Compared]) -> float:
    """How much more often the judge prefers the longer response than the gold labels do, as a difference of shares;
    without gold labels, than half of the time. Pairs of one length and ties of the judge say nothing."""
    told = [pair for pair in pairs if pair.longer and pair.preference != 0.5]
    known = [pair for pair in told if pair.gold]
    judge = _mean([float(_sign(pair.preference - 0.5) == pair.longer) for pair in known or told])
    return judge - (_mean([float(_sign(pair.gold) == pair.longer) for pair in known]) if known else 0.5)


def _right(pair: Compared) -> float:
    said = _sign(pair.preference - 0.5)
    return 0.5 if said == 0 else float(said == _sign(pair.gold))


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan
