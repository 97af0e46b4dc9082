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
    """Probability, by chance, of a model that is so much worse than what is tolerated."""
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
            f"is tolerated (regressions.{self.metric}); so much more by chance has probability {self.p:.2g}"
        )


def wins(groups: Sequence[Group], baseline: Sequence[Group], by: str | None) -> Measure:
    """Per prompt 1 where the model's greedy answer has the higher score, 0 where the baseline's has, 1/2 where both
    have the same; nothing where one of them has none."""
    pairs = [(score_of(a.outcomes[0], by), score_of(b.outcomes[0], by)) for a, b in zip(groups, baseline, strict=True)]
    return mean_of([None if a is None or b is None else 0.5 + 0.5 * float(np.sign(a - b)) for a, b in pairs])


def against(
    name: str,
    ours: Measure,
    baseline: Measure | None,
    seed: int,
    lower_is_better: Collection[str] = LOWER_IS_BETTER,
    tolerated: float = 0.0,
) -> Against:
    """`ours` beside the baseline's; None for a win rate, which is beside 1/2. `tolerated` is what may be lost."""
    if baseline is None:
        return _against_half(ours, seed, tolerated)
    both_N = (ours.below_N > 0) & (baseline.below_N > 0)
    first, second = ours.among(both_N), baseline.among(both_N)
    if not both_N.any():
        return Against(float("nan"), *NOTHING, 1.0, 1.0, "nothing to compare", 0)
    low, high = bootstrap(lambda drawn: first.statistic(drawn) - second.statistic(drawn), int(both_N.sum()), seed)
    sign = -1 if name in lower_is_better else 1
    two, worse = _p(first, second, seed, "two", sign), _p_worse(first, second, seed, sign, tolerated)
    test = "McNemar, exact" if _are_shares(first, second) else "sign flips"
    return Against(first.value - second.value, low, high, two, worse, test, int(both_N.sum()))


def _against_half(ours: Measure, seed: int, tolerated: float) -> Against:
    kept = ours.among(ours.below_N > 0)
    interval = kept.interval(seed) if not kept.is_share else bootstrap(kept.statistic, len(kept.above_N), seed)
    wins_N = kept.above_N
    two, worse = (win_rate_test(wins_N, seed, side) for side in ("two", "worse"))
    if tolerated:
        worse = sign_flip_test(wins_N - 0.5 + tolerated, seed, "worse")
    test = "sign test" if np.isin(wins_N, (0, 0.5, 1)).all() else "sign flips"
    return Against(kept.value - 0.5, interval[0] - 0.5, interval[1] - 0.5, two, worse, test, len(wins_N))


def _p(first: Measure, second: Measure, seed: int, side: Side, sign: int) -> float:
    if _are_shares(first, second):
        pair = (first.above_N, second.above_N) if sign > 0 else (1 - first.above_N, 1 - second.above_N)
        return mcnemar(*pair, side)
    return sign_flip_test(sign * (first.parts_N - second.parts_N), seed, side)


def _p_worse(first: Measure, second: Measure, seed: int, sign: int, tolerated: float) -> float:
    """The test of a loss, moved to where the loss is as great as tolerated."""
    if not tolerated:
        return _p(first, second, seed, "worse", sign)
    moved = math.log1p(tolerated / second.value) if first.exponential else tolerated
    better_N = sign * (first.parts_N - second.parts_N)
    return sign_flip_test(better_N + moved / len(better_N), seed, "worse")


def _are_shares(first: Measure, second: Measure) -> bool:
    return first.is_share and second.is_share and not first.exponential


def regressions(
    compared: Mapping[str, Mapping[str, Against]],
    tolerated: Mapping[str, float],
    level: float,
    lower_is_better: Collection[str] = LOWER_IS_BETTER,
) -> list[Regression]:
    """By model and metric, of those that could be compared, each by what is tolerated in it. All of them together are
    wrong with a probability of at most `level`: Holm 1979, Scandinavian Journal of Statistics 6:65."""
    tested = []
    for model, metrics in compared.items():
        for metric in [metric for metric in tolerated if metric in metrics and math.isfinite(metrics[metric].p_worse)]:
            beside = metrics[metric]
            loss = beside.difference if metric in lower_is_better else -beside.difference
            tested.append(Regression(model, metric, loss, tolerated[metric], beside.p_worse))
    by_p = sorted(tested, key=lambda each: each.p)
    kept = next((i for i, each in enumerate(by_p) if each.p >= level / (len(by_p) - i)), len(by_p))
    return [each for each in tested if each in by_p[:kept] and each.loss > each.tolerated]


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
