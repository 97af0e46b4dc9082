"""What answers are worth, prompt by prompt: of one model in training, and of several that are compared.

A measure keeps what each prompt contributes, so that two models can be compared on the prompts that both answered.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlpipe.algorithms.diversity import distinct_n, self_overlap
from rlpipe.algorithms.intervals import Interval, bootstrap, ratio, wilson
from rlpipe.algorithms.pass_at_k import pass_at_k
from rlpipe.data.flow import Group, Outcome, Score, Trajectory
from rlpipe.recipe.rollout import Evaluation

DISTINCT, OVERLAP = 2, 2
"""Words in a row that the measures of diversity look at."""


@dataclass(frozen=True)
class Measure:
    """Sum of `above` / sum of `below`, over prompts: a mean over prompts where `below` is 1 for those that have
    something to say and 0 for the others, a mean over tokens where it counts them. `exponential`: e to the power of
    that."""

    above_N: np.ndarray
    below_N: np.ndarray
    exponential: bool = False

    @property
    def value(self) -> float:
        """NaN where no prompt has anything to say."""
        below = self.below_N.sum()
        return self._shown(float(self.above_N[self.below_N > 0].sum() / below)) if below else math.nan

    @property
    def parts_N(self) -> np.ndarray:
        """What each prompt contributes to the value before any exponential, which is their sum: one with few tokens
        weighs as little as it does in a mean over tokens."""
        return self.above_N / self.below_N.sum()

    @property
    def is_share(self) -> bool:
        """Whether each prompt is right or wrong."""
        there = self.below_N > 0
        return bool((self.below_N[there] == 1).all() and np.isin(self.above_N[there], (0, 1)).all())

    def interval(self, seed: int) -> Interval:
        """95 %: Wilson's of a share, else by resampling prompts."""
        if self.is_share and not self.exponential:
            return wilson(int(self.above_N[self.below_N > 0].sum()), int(self.below_N.sum()))
        low, high = bootstrap(self.statistic, len(self.above_N), seed)
        return Interval(low, high)

    def statistic(self, drawn_RN: np.ndarray) -> np.ndarray:
        """Its value on each drawing of prompts."""
        found_R = ratio(self.above_N, self.below_N)(drawn_RN)
        return np.exp(found_R) if self.exponential else found_R

    def among(self, kept_N: np.ndarray) -> "Measure":
        """Of these prompts alone."""
        return Measure(self.above_N[kept_N], self.below_N[kept_N], self.exponential)

    def _shown(self, value: float) -> float:
        return math.exp(value) if self.exponential else value


def mean_of(values: Sequence[float | None]) -> Measure:
    """Of one number per prompt; None, and NaN, for a prompt that has none."""
    values_N = np.array([math.nan if value is None else value for value in values], float)
    there_N = np.isfinite(values_N)
    return Measure(np.where(there_N, values_N, 0.0), there_N.astype(float))


def greedy_measures(groups: Sequence[Group], settings: Evaluation) -> dict[str, Measure]:
    """Of one greedy answer per prompt. A response whose reward failed counts in no mean, and is counted itself."""
    outcomes = [group.outcomes[0] for group in groups]
    judged = not _unjudged(outcomes)
    found = _worth(outcomes) if judged else {}
    trajectories = [group.trajectories[0] for group in groups]
    found["length"] = mean_of([float(t.response_mask.sum()) for t in trajectories])
    if any(t.episode for t in trajectories):
        found["turns"] = mean_of(_turns(trajectories))
    if judged and settings.correct_at is not None:
        found["accuracy"] = mean_of([_right(outcome, settings) for outcome in outcomes])
    return found


def sampled_measures(groups: Sequence[Group], settings: Evaluation) -> dict[str, Measure]:
    """pass@k of several answers per prompt; of those whose reward could be computed."""
    if settings.correct_at is None or _unjudged([o for group in groups for o in group.outcomes]):
        return {}
    judged = [[r for o in group.outcomes if (r := _right(o, settings)) is not None] for group in groups]
    return {f"pass@{k}": mean_of([_pass(rights, k) for rights in judged]) for k in settings.pass_at}


def diversity_measures(groups: Sequence[Group]) -> dict[str, Measure]:
    """Of several answers to each prompt."""
    said = [group.completions for group in groups]
    return {
        f"distinct_{DISTINCT}": mean_of([distinct_n(texts, DISTINCT) for texts in said]),
        "self_overlap": mean_of([self_overlap(texts, OVERLAP) for texts in said]),
    }


def refusal_measure(groups: Sequence[Group], patterns: Sequence[str]) -> Measure:
    """The share of greedy answers in which one of the patterns is found."""
    compiled = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]
    said = [group.completions[0].replace("’", "'") for group in groups]
    return mean_of([float(any(p.search(text) for p in compiled)) for text in said])


def kl_measures(own: Sequence[Sequence[np.ndarray]], reference: Sequence[Sequence[np.ndarray]]) -> dict[str, Measure]:
    """From log-probabilities of the same sampled tokens, by prompt and sample, under the model that drew them at
    temperature 1 and under the reference:

        reference_kl  mean over tokens of log p - log q: the estimator k1 of `algorithms.kl`, unbiased for the
                      KL(p || q) of whole answers, shown per token; by chance it may lie below 0 where both are close
        perplexity    exp of the mean over tokens of -log q

    A model with a shorter context says nothing of an answer's last tokens: both sides are over those that both have.
    """
    own, reference = _both(own, reference), _both(reference, own)
    tokens_N = np.array([sum(map(len, samples)) for samples in own], float)
    own_N, reference_N = (np.array([sum(float(s.sum()) for s in of) for of in side]) for side in (own, reference))
    return {"reference_kl": Measure(own_N - reference_N, tokens_N), "perplexity": Measure(-reference_N, tokens_N, True)}


def left_out(own: Sequence[Sequence[np.ndarray]], reference: Sequence[Sequence[np.ndarray]]) -> int:
    """Tokens that one of them has no log-probability of."""
    pairs = zip(own, reference, strict=True)
    return sum(abs(len(a) - len(b)) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


def _both(one: Sequence[Sequence[np.ndarray]], other: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    pairs = zip(one, other, strict=True)
    return [[a[: len(b)] for a, b in zip(ours, theirs, strict=True)] for ours, theirs in pairs]


def failure_measure(groups: Sequence[Group]) -> Measure:
    """The share of greedy answers that have no reward."""
    return mean_of([float(not isinstance(group.outcomes[0], Score)) for group in groups])


def failures_in(groups: Sequence[Group]) -> float:
    """How many greedy answers have no reward."""
    return float(sum(not isinstance(group.outcomes[0], Score) for group in groups))


def values(measures: Mapping[str, Measure]) -> dict[str, float]:
    """The number of each."""
    return {name: measure.value for name, measure in measures.items()}


def score_of(outcome: Outcome, by: str | None) -> float | None:
    """The weighted sum, or the component of that name; None where it could not be computed, does not apply, or nobody
    judged."""
    if not isinstance(outcome, Score) or not outcome.judged:
        return None
    return outcome.components.get(by) if by else outcome.value


def turns_metric(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Turns of the policy in the mean; nothing without an environment."""
    return {"turns": mean_of(_turns(trajectories)).value} if any(t.episode for t in trajectories) else {}


def _turns(trajectories: Sequence[Trajectory]) -> list[float | None]:
    return [float(len(t.episode.starts)) if t.episode else None for t in trajectories]


def _right(outcome: Outcome, settings: Evaluation) -> float | None:
    score = score_of(outcome, settings.correct_by)
    return None if score is None else float(score >= settings.correct_at)


def _pass(rights: Sequence[float], k: int) -> float | None:
    return pass_at_k(len(rights), int(sum(rights)), k) if len(rights) >= k else None


def _unjudged(outcomes: Sequence[Outcome]) -> bool:
    """Whether there are no rewards. One that failed is one, where none of the others is a score without any."""
    return not outcomes or any(isinstance(o, Score) and not o.judged for o in outcomes)


def _worth(outcomes: Sequence[Outcome]) -> dict[str, Measure]:
    """The weighted sum, and each reward of a mix."""
    return {"reward": mean_of([score_of(o, None) for o in outcomes])} | _components(outcomes)


def _components(outcomes: Sequence[Outcome]) -> dict[str, Measure]:
    """Each reward of a mix, where there is more than one: what is learned from beside what is meant."""
    names = dict.fromkeys(name for o in outcomes if isinstance(o, Score) for name in o.components)
    if len(names) < 2:
        return {}
    component: Callable[[str], Measure] = lambda name: mean_of([score_of(o, name) for o in outcomes])  # noqa: E731
    return {f"reward/{name}": component(name) for name in names}
