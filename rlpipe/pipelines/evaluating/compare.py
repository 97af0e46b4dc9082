"""Measures of several models, each beside the baseline's on the same prompts."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from rlpipe.algorithms.intervals import NOTHING, bootstrap
from rlpipe.algorithms.paired_tests import Side, mcnemar, sign_flip_test, win_rate_test
from rlpipe.data.flow import Group
from rlpipe.pipelines.evaluating.measures import Measure, mean_of, score_of

WIN_RATE = "win_rate"
LOWER_IS_BETTER = ("refusals", "failure_rate", "reference_kl", "perplexity")
"""Of the metrics in which a model can be worse than another one."""


@dataclass(frozen=True, slots=True)
class Against:
    """A model beside the baseline, in one metric, over the prompts that both have a value for."""

    difference: float
    """The model's minus the baseline's; of a win rate, minus 1/2."""
    low: float
    high: float
    """95 % interval of the difference, by drawing prompts again."""
    p: float
    """Probability of a difference as large, in either direction, by chance."""
    p_worse: float
    """Probability of a model that is as much worse by chance."""
    test: str
    prompts: int


@dataclass(frozen=True, slots=True)
class Regression:
    """More was lost than is tolerated, and more than chance would have it."""

    model: str
    metric: str
    loss: float
    tolerated: float
    p: float

    @property
    def told(self) -> str:
        return (
            f"{self.model} is worse than the baseline in {self.metric}: by {self.loss:.4g}, where {self.tolerated:g} "
            f"is tolerated (regressions.{self.metric}); as much by chance has probability {self.p:.2g}"
        )


def wins(groups: Sequence[Group], baseline: Sequence[Group], by: str | None) -> Measure:
    """Per prompt 1 where the model's greedy answer has the higher score, 0 where the baseline's has, 1/2 where both
    have the same; nothing where one of them has none."""
    pairs = [(score_of(a.outcomes[0], by), score_of(b.outcomes[0], by)) for a, b in zip(groups, baseline, strict=True)]
    return mean_of([None if a is None or b is None else 0.5 + 0.5 * float(np.sign(a - b)) for a, b in pairs])


def against(
    name: str, ours: Measure, baseline: Measure | None, seed: int, lower_is_better: Collection[str] = LOWER_IS_BETTER
) -> Against:
    """`ours` beside the baseline's; None for a win rate, which is beside 1/2."""
    if baseline is None:
        return _against_half(ours, seed)
    both_N = (ours.below_N > 0) & (baseline.below_N > 0)
    first, second = ours.among(both_N), baseline.among(both_N)
    if not both_N.any():
        return Against(float("nan"), *NOTHING, 1.0, 1.0, "nothing to compare", 0)
    low, high = bootstrap(lambda drawn: first.statistic(drawn) - second.statistic(drawn), int(both_N.sum()), seed)
    sign = -1 if name in lower_is_better else 1
    tested = {side: _p(first, second, seed, side, sign) for side in ("two", "worse")}
    test = "McNemar, exact" if _are_shares(first, second) else "sign flips"
    return Against(first.value - second.value, low, high, tested["two"], tested["worse"], test, int(both_N.sum()))


def _against_half(ours: Measure, seed: int) -> Against:
    kept = ours.among(ours.below_N > 0)
    interval = kept.interval(seed) if not kept.is_share else bootstrap(kept.statistic, len(kept.above_N), seed)
    two, worse = (win_rate_test(kept.above_N, seed, side) for side in ("two", "worse"))
    return Against(kept.value - 0.5, interval[0] - 0.5, interval[1] - 0.5, two, worse, "sign test", len(kept.above_N))


def _p(first: Measure, second: Measure, seed: int, side: Side, sign: int) -> float:
    if _are_shares(first, second):
        pair = (first.above_N, second.above_N) if sign > 0 else (1 - first.above_N, 1 - second.above_N)
        return mcnemar(*pair, side)
    return sign_flip_test(sign * (first.per_prompt_N - second.per_prompt_N), seed, side)


def _are_shares(first: Measure, second: Measure) -> bool:
    return first.is_share and second.is_share and not first.exponential


def regressions(
    compared: Mapping[str, Mapping[str, Against]],
    tolerated: Mapping[str, float],
    level: float,
    lower_is_better: Collection[str] = LOWER_IS_BETTER,
) -> list[Regression]:
    """By model and metric, of those that could be compared."""
    found = []
    for model, metrics in compared.items():
        for metric, most in tolerated.items():
            if (beside := metrics.get(metric)) is None:
                continue
            loss = beside.difference if metric in lower_is_better else -beside.difference
            if loss > most and beside.p_worse < level:
                found.append(Regression(model, metric, loss, most, beside.p_worse))
    return found


def not_compared(compared: Mapping[str, Mapping[str, Against]], tolerated: Mapping[str, float]) -> list[str]:
    """In words, the models and metrics of which nobody can say whether they are worse: no number passes for a good one
    because it is not there."""
    found = []
    for model, metrics in compared.items():
        for metric in tolerated:
            if metric not in metrics:
                found.append(
                    f"regressions.{metric}: for {model} it was not measured, or not question by question; what was: "
                    f"{', '.join(metrics)}"
                )
            elif not math.isfinite(metrics[metric].difference):
                found.append(
                    f"regressions.{metric}: {model} and the baseline have no number to compare, as on "
                    f"{metrics[metric].prompts} prompts both have one, or one of them is not finite; failure_rate and "
                    "answers.parquet say whose rewards failed"
                )
    return found


def as_data(against: Against | Regression) -> dict[str, object]:
    """For JSON."""
    return asdict(against)
