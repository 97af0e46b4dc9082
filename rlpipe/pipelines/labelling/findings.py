"""What is to be known of labels before anybody learns from them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any

from rlpipe.algorithms import agreement
from rlpipe.data.flow import Failure, FinishReason, Group
from rlpipe.pipelines.labelling.preferences import compared, judged


@dataclass(frozen=True)
class Findings:
    """Of one part, training or held-out."""

    prompts: int
    left_out: int
    """Prompts of which no response could be judged: nothing else here counts them."""
    responses: int
    asked_twice: int
    """Comparisons that were made in both orders."""
    failures: dict[str, int]
    """Questions to judges and rewards of responses that failed, by kind: they are in no label."""
    empty: int
    """Responses without any text, which are in no record."""
    cut: int
    """Responses that were cut off at their greatest length."""
    metrics: dict[str, float] = field(default_factory=dict)
    """See `measured`; what is not known is not in it."""
    judges: dict[str, str] = field(default_factory=dict)
    """Who judged by which template, by the name of the reward."""
    principles: dict[str, int] = field(default_factory=dict)
    """How many prompts were judged by each principle."""


MEANINGS = {
    "agreement/accuracy": "pairs with a better response that are ranked right; a tie counts half",
    "agreement/kappa": "Cohen's kappa of the verdicts with the gold ones: 0 is chance, 1 is full agreement",
    "position_bias": "rise of a response's probability when it is shown first; 0 is none, 1 is all",
    "disagreement": "pairs of which the other response is preferred in the other order",
    "length_bias": "how much more often than the gold labels (without them: than half of the time) the longer wins",
    "ties": "pairs of different responses that are worth the same",
    "mass": "mean probability that the judge answers with one of its options",
}


def find(groups: Sequence[Group], judge: str | None, gold: str | None, tie_within: float, asked: int) -> Findings:
    """`asked` is the number of prompts, of which `groups` have a response that was judged. `judge` is the reward that
    compares, `gold` what its labels are compared with; None where there is none."""
    details = [one.details for group in groups for one in judged(group)]
    rows = [row for group in groups for row in _comparisons(group, judge)] if judge else []
    asked_twice = sum("as_first" in row and "as_second" in row for row in rows)
    failures = Counter(o.kind for group in groups for o in group.outcomes if isinstance(o, Failure))
    return Findings(
        prompts=len(groups),
        left_out=asked - len(groups),
        responses=sum(len(group.completions) for group in groups),
        asked_twice=asked_twice,
        failures=dict(failures.most_common()),
        cut=sum(t.finish_reason is FinishReason.LENGTH for group in groups for t in group.trajectories),
        empty=sum(not text.strip() for group in groups for text in group.completions),
        metrics=measured(groups, judge, gold, tie_within, [row["mass"] for row in rows if "mass" in row]),
        judges={name: _who(said) for one in details for name, said in one.items()},
        principles=_principles(groups),
    )


def measured(
    groups: Sequence[Group], judge: str | None, gold: str | None, tie_within: float, mass: Sequence[float]
) -> dict[str, float]:
    """What can be said of these labels, by the names of `MEANINGS`."""
    pairs = [pair for group in groups for pair in compared(group, judge, gold)]
    found = {
        "agreement/accuracy": agreement.accuracy(pairs),
        "agreement/kappa": agreement.kappa(pairs),
        "position_bias": agreement.position_bias(pairs),
        "disagreement": agreement.disagreement(pairs),
        "length_bias": agreement.length_bias(pairs),
        "ties": fmean(ties) if (ties := [tie for group in groups for tie in _ties(group, tie_within)]) else math.nan,
        "mass": fmean(mass) if mass else math.nan,
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _comparisons(group: Group, judge: str) -> list[dict[str, Any]]:
    """What was said of each pair, once: it stands with both of its responses, if both have a reward."""
    found = {
        frozenset((one.index, row["other"])): row
        for one in judged(group)
        for row in one.details.get(judge, {}).get("comparisons", [])
    }
    return list(found.values())


def _ties(group: Group, within: float) -> list[bool]:
    """Of each pair of different responses, whether they are worth the same: as for preferences."""
    pairs = [(one, other) for one, other in combinations(judged(group), 2) if one.text != other.text]
    return [abs(one.score.value - other.score.value) <= within for one, other in pairs]


def _who(said: dict[str, Any]) -> str:
    return f"{said['judge']}, template {said['template']}"


def _principles(groups: Sequence[Group]) -> dict[str, int]:
    named = [{said.get("principle") for one in judged(group) for said in one.details.values()} for group in groups]
    return dict(Counter(name for names in named for name in names if name).most_common())
