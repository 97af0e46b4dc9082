"""A language model's judgement as a reward.

Compared, a response is worth the mean probability of being the better one, over the other responses to the prompt: its
expected win rate, 0.5 among equals. Each pair is asked about in both orders, since a judge may prefer what stands
first (Wang et al. 2023, arXiv 2305.17926), and the two answers are averaged. Graded, it is worth the expected value of
the options.

What was asked and answered goes along in `Score.details`, for the provenance of labels.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from rlpipe.data.flow import Failure, Group, Prompt
from rlpipe.data.guidance import asked_of
from rlpipe.data.judge_questions import transcript
from rlpipe.data.judge_template import Template
from rlpipe.recipe.judge import JudgeReward
from rlpipe.rewards.judging.question import Arbiter, Choice, Question
from rlpipe.rewards.judging.usage import Usage
from rlpipe.rewards.reward import Allowance, Component, Explained

Answers = dict[str, Choice | Failure]
"""By the id of the question."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The principle that a prompt is judged by."""

    principle_id: str
    """With the name and the version of its constitution: `ours@2/kind`."""
    text: str


Draw = Callable[[Prompt], Drawn | None]
"""None where there is no constitution."""


class Judged:
    """See above."""

    def __init__(self, recipe: JudgeReward, arbiter: Arbiter, template: Template, draw: Draw, at_once: int) -> None:
        """`at_once`: questions of one call, about."""
        self.name, self.weight = recipe.name, recipe.weight
        self._recipe, self._arbiter, self._template = recipe, arbiter, template
        self._draw, self._at_once = draw, at_once

    def start(self) -> None:
        self._arbiter.start()

    def ready(self) -> None:
        self._arbiter.ready()

    def close(self) -> None:
        self._arbiter.close()

    def usage(self) -> Usage | None:
        """What asking has taken so far."""
        return self._arbiter.usage()

    def takes(self, waiting: Sequence[Group]) -> int:
        """Groups until the questions of one call are full."""
        questions, count = 0, 0
        for group in waiting:
            questions += self._questions_of(len(group.completions))
            if count and questions > self._at_once:
                break
            count += 1
        return count

    def score_all(self, groups: Sequence[Group], allowance: Allowance) -> list[list[Component]]:
        asked = [self._asked_or_not(group) for group in groups]
        distinct = {q.question_id: q for one in asked if isinstance(one, dict) for q in one.values()}
        answers = dict(zip(distinct, self._arbiter.ask(list(distinct.values()), allowance), strict=True))
        say = self._compared if self._template.compares else self._graded
        return [
            [one] * len(group.completions) if isinstance(one, Failure) else say(group, one, answers)
            for group, one in zip(groups, asked, strict=True)
        ]

    def _questions_of(self, responses: int) -> int:
        if not self._template.compares:
            return responses
        return responses * (responses - 1) // (1 if self._recipe.orders == "both" else 2)

    def _asked_or_not(self, group: Group) -> dict[tuple[int, int], Question] | Failure:
        try:
            return self._asked(group)
        except KeyError as missing:
            why = f"the template {self._template.name} shows {{{missing.args[0]}}}, and the row has no such column"
            return Failure("missing_column", why)

    def _asked(self, group: Group) -> dict[tuple[int, int], Question]:
        """By the responses that are shown, in their order; (i, i) where one is graded."""
        said = group.completions
        if not self._template.compares:
            return {(i, i): self._question(group, {"response": text}) for i, text in enumerate(said)}
        pairs = [order for i, j in combinations(range(len(said)), 2) for order in self._orders(group, i, j)]
        return {
            (i, j): self._question(group, {"first": said[i], "second": said[j]})
            for i, j in pairs
            if said[i] != said[j]  # they are equals without anybody being asked
        }

    def _orders(self, group: Group, i: int, j: int) -> list[tuple[int, int]]:
        if self._recipe.orders == "both":
            return [(i, j), (j, i)]
        turned = _digest([self._recipe.seed, group.prompt.prompt_id, i, j])[0] in "01234567"
        return [(j, i) if turned else (i, j)]

    def _question(self, group: Group, shown: dict[str, str]) -> Question:
        drawn = self._draw(group.prompt)
        values = {name: str(value) for name, value in group.prompt.columns.items()}
        values |= {
            "prompt": transcript(asked_of(group.prompt)),
            **({"principle": drawn.text} if drawn else {}),
        }
        messages = self._template.filled(values | shown)
        question_id = _digest([self._template.name, messages, self._template.options, self._recipe.seed])
        return Question(question_id, messages, self._template.options, int(question_id[:7], 16))

    def _graded(self, group: Group, asked: dict[tuple[int, int], Question], answers: Answers) -> list[Component]:
        return [self._grade(group, answers[asked[i, i].question_id]) for i in range(len(group.completions))]

    def _grade(self, group: Group, answer: Choice | Failure) -> Component:
        if isinstance(answer, Failure):
            return answer
        value = sum(p * v for p, v in zip(answer.probabilities, self._template.values, strict=True))
        return Explained(value, self._about(group) | _said(answer))

    def _compared(self, group: Group, asked: dict[tuple[int, int], Question], answers: Answers) -> list[Component]:
        """None for a response that there is nothing to compare with."""
        count = len(group.completions)
        if count < 2:
            return [None] * count
        heard = {pair: answers[question.question_id] for pair, question in asked.items()}
        return [self._win_rate(group, i, heard) for i in range(count)]

    def _win_rate(self, group: Group, i: int, heard: dict[tuple[int, int], Choice | Failure]) -> Component:
        others = [j for j in range(len(group.completions)) if j != i]
        rows = [_comparison(i, j, heard, group.completions[i] == group.completions[j]) for j in others]
        won = [row["better"] for row in rows if row["better"] is not None]
        if len(won) < len(others):  # a mean over other opponents than those of the rest would not compare
            return next(a for pair, a in heard.items() if i in pair and isinstance(a, Failure))
        return Explained(fmean(won), self._about(group) | {"comparisons": rows})

    def _about(self, group: Group) -> dict[str, Any]:
        drawn = self._draw(group.prompt)
        about = {"judge": self._arbiter.name, "template": self._template.name, "seed": self._recipe.seed}
        return about | ({"principle": drawn.principle_id} if drawn else {})


def _comparison(i: int, j: int, heard: dict[tuple[int, int], Choice | Failure], same: bool) -> dict[str, Any]:
    """What was said of response i against j: the probability that i is the better one, shown as the first, as the
    second, and in the mean. A pair of which one question failed says nothing."""
    if same:
        return {"other": j, "better": 0.5, "same": True}
    answers = {"as_first": heard.get((i, j)), "as_second": heard.get((j, i))}
    failures = [answer.kind for answer in answers.values() if isinstance(answer, Failure)]
    choices = {place: answer for place, answer in answers.items() if isinstance(answer, Choice)}
    found = {place: choice.probabilities[0 if place == "as_first" else 1] for place, choice in choices.items()}
    if failures:
        return {"other": j, "better": None, **found, "failures": failures}
    said = {f"said_{place}": choice.said for place, choice in choices.items() if choice.said}
    mass = min(choice.mass for choice in choices.values())
    return {"other": j, "better": fmean(found.values()), **found, "mass": mass, **said}


def _said(answer: Choice) -> dict[str, Any]:
    said = {"said": answer.said} if answer.said else {}
    return {"probabilities": list(answer.probabilities), "mass": answer.mass, **said}


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
