"""From judged responses to data: preferences, single responses that are good or bad, and the best ones.

    preferences   prompt, chosen, rejected, margin, probability, …     DPO and relatives, reward models
    unpaired      prompt, completion, label, …                         KTO
    best          prompt, completion, …                                SFT: best-of-n, rejection sampling

`margin` is the difference of the two rewards. `probability`, where a judge compared the two, is its probability that
the chosen one is better. Further columns are the row's own, and where a label comes from: `provenance`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rlpipe.algorithms.agreement import Compared
from rlpipe.data.flow import Group, Prompt, Score
from rlpipe.data.guidance import PLAIN, SHOWN, asked_of
from rlpipe.recipe.labelling import FIRST, Labels

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """A response that was judged."""

    index: int
    text: str
    score: Score

    def comparison(self, other: int, judge: str) -> Row | None:
        """What a judge that compares said of it against response `other`."""
        rows = self.details.get(judge, {}).get("comparisons", [])
        return next((row for row in rows if row["other"] == other), None)

    @property
    def details(self) -> dict[str, Any]:
        return json.loads(self.score.details) if self.score.details else {}


def judged(group: Group) -> list[Judged]:
    """The responses of a group that have a reward, in their order. One whose reward failed is in no record."""
    rows = enumerate(zip(group.completions, group.outcomes, strict=True))
    return [Judged(i, text, outcome) for i, (text, outcome) in rows if isinstance(outcome, Score)]


def recorded(group: Group) -> list[Judged]:
    """Those of them that can stand in a record, which needs text."""
    return [one for one in judged(group) if one.text.strip()]


class Maker:
    """Makes rows by the recipe's settings."""

    def __init__(self, settings: Labels, judge: str | None, system: str | None) -> None:
        """`judge` is the name of the reward that compares, where there is one; `system` is the recipe's system message,
        which whoever trains on the data puts in front again."""
        self._settings, self._judge, self._system = settings, judge, system
        self._as_messages = False

    def look_at(self, groups: Iterable[Group]) -> None:
        """Where the prompt of one record is a conversation, those of all are: a column has one type."""
        self._as_messages = any(not isinstance(asked(group.prompt, self._system), str) for group in groups)

    def preferences(self, group: Group) -> Iterator[Row]:
        found = recorded(group)
        pairs = list(combinations(found, 2)) if self._settings.pairs == "all" else _extremes(found)
        for one, other in pairs:
            if one.text == other.text:
                continue  # nothing is better than itself
            better, worse = (one, other) if one.score.value >= other.score.value else (other, one)
            margin = better.score.value - worse.score.value
            if tied := margin <= self._settings.tie_within:
                if self._settings.ties == "drop":
                    continue
                margin = 0.0
            yield self._pair(group, better, worse, margin, tied)

    def unpaired(self, group: Group) -> Iterator[Row]:
        found = _distinct(recorded(group))
        mean = sum(one.score.value for one in found) / len(found) if found else 0.0
        for one in found:
            if (good := self._is_good(one.score.value, mean)) is not None:
                said = self._answer(one.text)
                yield self._asked(group.prompt) | {"completion": said, "label": good} | self._about(group, one)

    def best(self, group: Group) -> Iterator[Row]:
        found, least = recorded(group), self._settings.accept_at
        one = max(found, key=lambda each: each.score.value, default=None)
        if one is not None and (least is None or one.score.value >= least):
            said = self._answer(one.text)
            yield self._asked(group.prompt) | {"completion": said} | self._about(group, one)

    def _is_good(self, value: float, mean: float) -> bool | None:
        if self._settings.good_at is not None:
            return value >= self._settings.good_at
        return None if abs(value - mean) <= self._settings.tie_within else value > mean

    def _pair(self, group: Group, better: Judged, worse: Judged, margin: float, tied: bool) -> Row:
        prompt = group.prompt
        said = {"chosen": self._answer(better.text), "rejected": self._answer(worse.text)}
        heard = better.comparison(worse.index, self._judge) if self._judge else None
        probability = {} if heard is None else {"probability": heard["better"]}
        orders = {} if heard is None else {"orders": [heard.get("as_first"), heard.get("as_second")]}
        scores = {"chosen_score": better.score.value, "rejected_score": worse.score.value}
        about = self._about(group, better)
        provenance = json.loads(about.pop("provenance")) | {"responses": [better.index, worse.index]} | orders
        numbers = {"margin": margin, "tie": tied} | probability | scores
        return self._asked(prompt) | said | numbers | about | {"provenance": _json(provenance)}

    def _about(self, group: Group, one: Judged) -> Row:
        """The row's own columns, what the response was worth, and where its labels come from."""
        own = {name: value for name, value in group.prompt.columns.items() if name not in _OURS}
        sources = {
            name: {key: value for key, value in said.items() if key != "comparisons"}
            for name, said in one.details.items()
        }
        notes = [json.loads(t.note) for t in group.conversations[one.index] if t.note] if group.conversations else []
        ended = group.trajectories[one.index].finish_reason.value
        about = {"prompt_id": group.prompt.prompt_id, "finish_reason": ended, **sources}
        about |= {"turns": notes} if notes else {}
        return own | {"score": one.score.value, "provenance": _json(about)}

    def _asked(self, prompt: Prompt) -> Row:
        said = asked(prompt, self._system)
        if self._as_messages and isinstance(said, str):
            said = [{"role": "user", "content": said}]
        return {"prompt": said}

    def _answer(self, text: str) -> Any:
        """As text where prompts are text, else as messages."""
        return [{"role": "assistant", "content": text}] if self._as_messages else text


_OURS = {"prompt", "completion", "chosen", "rejected", "label", "margin", "probability", "tie", "chosen_score",
         "rejected_score", "score", "provenance", PLAIN, SHOWN}  # fmt: skip
"""Columns that rows of ours have; one of the data with such a name gives way. And guidance: it is not learned from."""


def asked(prompt: Prompt, system: str | None) -> str | list[Row]:
    """The prompt as a record has it: a text, or messages without the recipe's system message."""
    messages = asked_of(prompt)
    if isinstance(messages, str):
        return messages
    if system is not None and messages[0] == {"role": "system", "content": system}:
        messages = messages[1:]
    return messages[0]["content"] if len(messages) == 1 and messages[0]["role"] == "user" else messages


def compared(group: Group, judge: str | None, gold: str | None) -> Iterator[Compared]:
    """All pairs of a group's different responses, as the labels and the gold labels have them."""
    for one, other in combinations(judged(group), 2):
        if one.text != other.text and (preference := _preference(one, other, judge)) is not None:
            longer = (len(one.text) > len(other.text)) - (len(one.text) < len(other.text))
            yield Compared(preference, _gold(one, other, gold), longer, _orders(one, other, judge))


def _preference(one: Judged, other: Judged, judge: str | None) -> float | None:
    if judge is None:
        difference = one.score.value - other.score.value
        return 0.5 + 0.5 * ((difference > 0) - (difference < 0))
    heard = one.comparison(other.index, judge)
    return None if heard is None else heard["better"]


def _orders(one: Judged, other: Judged, judge: str | None) -> tuple[float, float] | None:
    heard = one.comparison(other.index, judge) if judge else None
    if heard is None or "as_first" not in heard or "as_second" not in heard:
        return None
    return heard["as_first"], heard["as_second"]


def _gold(one: Judged, other: Judged, gold: str | None) -> float | None:
    if gold is None:
        return None
    if gold == FIRST:  # of two others nobody knows
        return float((one.index == 0) - (other.index == 0)) or None
    values = [each.score.components.get(gold) for each in (one, other)]
    return None if None in values else values[0] - values[1]


def _extremes(found: Sequence[Judged]) -> list[tuple[Judged, Judged]]:
    if len(found) < 2:
        return []
    values = [one.score.value for one in found]
    best, worst = values.index(max(values)), values.index(min(values))
    if best == worst:  # all are worth the same: a tie of the first with the next that says something else
        others = [one for one in found if one.text != found[0].text]
        return [(found[0], others[0])] if others else []
    return [(found[best], found[worst])]


def _distinct(found: Sequence[Judged]) -> list[Judged]:
    return list({one.text: one for one in reversed(found)}.values())[::-1]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
