"""Held-out evaluation of whatever model the engines serve: greedy answers, and sampled pass@k."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlpipe.data.flow import Failure, Group, GroupRequest, Outcome, Prompt, Sampling
from rlpipe.data.seeds import sample_seed
from rlpipe.pipelines.answers import Answers, Ask
from rlpipe.pipelines.evaluating.measures import failures_in, greedy_measures, sampled_measures, values
from rlpipe.pipelines.stage import Stage
from rlpipe.rollout import spoken

SECONDS_PER_LOOK = 0.5
"""How long engines or rewards are waited for before the progress is told."""


@dataclass(frozen=True, slots=True)
class Answered:
    """All held-out prompts in their order, scored."""

    greedy: list[Group]
    """One answer each."""
    sampled: list[Group]
    """Several each; empty where none are drawn."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Metrics over all held-out prompts, and the greedy answers to a few of them."""

    metrics: dict[str, float]
    samples: list[dict[str, Any]]
    asked: str
    """Digest of what was asked, and how answers were judged: evaluations compare where it is the same."""


class Evaluator:
    """Asks the same held-out prompts with the same seeds each time, so that evaluations compare."""

    def __init__(self, stage: Stage, heldout: Sequence[Prompt]) -> None:
        recipe, self._events = stage.recipe, stage.events
        self._settings, self._seed = recipe.evaluation, recipe.seed
        self._prompts = list(heldout)[: recipe.evaluation.prompts]
        self._greedy = Sampling(recipe.rollout.max_new_tokens, 0.0, stage.stop_token_ids)
        self._sampled = replace(self._greedy, temperature=recipe.evaluation.temperature)
        self._judged_by = recipe.rewards.model_dump_json() if recipe.rewards else ""

    def run(self, answers: Answers, meanwhile: Callable[[], None] = lambda: None) -> Evaluated:
        """Answers, scored. A response whose reward failed counts in no mean, and is counted itself. `meanwhile` is
        called again and again."""
        passes = bool(self._settings.pass_at) and self._settings.correct_at is not None
        found = self.ask(answers, passes, meanwhile)
        return Evaluated(self.metrics(found), self.shown(found), self.asked)

    def metrics(self, found: Answered) -> dict[str, float]:
        """In numbers."""
        measures = greedy_measures(found.greedy, self._settings) | sampled_measures(found.sampled, self._settings)
        return values(measures) | {"failures": failures_in(found.greedy)}

    def ask(self, answers: Answers, samples: bool, meanwhile: Callable[[], None] = lambda: None) -> Answered:
        """A greedy answer to each prompt, and with `samples` as many drawn ones as the recipe says."""
        greedy = self._answers(answers, meanwhile, self._greedy, 1, "greedy")
        drawn = self._answers(answers, meanwhile, self._sampled, self._settings.samples, "sampled") if samples else []
        return Answered(greedy, drawn)

    def shown(self, found: Answered) -> list[dict[str, Any]]:
        """The greedy answers to a few prompts, as events tell them."""
        return [sample_of(group) for group in found.greedy[: self._settings.show]]

    @property
    def asked(self) -> str:
        """See `Evaluated.asked`."""
        settings = self._settings.model_dump(include={"correct_by", "correct_at"})
        told = (self._greedy.max_new_tokens, settings, self._judged_by, [(p.text, p.columns) for p in self._prompts])
        return hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()

    def _answers(
        self, answers: Answers, meanwhile: Callable[[], None], sampling: Sampling, count: int, kind: str
    ) -> list[Group]:
        by_id = {f"evaluation/{kind}/{p.prompt_id}": p for p in self._prompts}
        scored: dict[str, Group] = {}

        def told(group: Group) -> None:
            scored[group.group_id] = group

        answers.ask([Ask(self._request(group_id, p, sampling, count), p) for group_id, p in by_id.items()], told)
        try:
            while len(scored) < len(by_id):
                answers.work_off()
                answers.look(SECONDS_PER_LOOK)
                meanwhile()
                self._events.progress(f"{len(scored)}/{len(by_id)}, {kind}")
        finally:  # after a fault nobody waits for the others any more
            answers.forget(by_id)
        return [scored[group_id] for group_id in by_id]

    def _request(self, group_id: str, prompt: Prompt, sampling: Sampling, count: int) -> GroupRequest:
        seeds = tuple(sample_seed(self._seed, prompt.prompt_id, 0, i) for i in range(count))
        return GroupRequest(group_id, prompt.prompt_id, prompt.tokens, seeds, sampling)


def said_in(group: Group, index: int) -> str:
    """What one response says, as people read it."""
    return spoken.script(group.conversations[index]) if group.conversations else group.completions[index]


def shown(outcome: Outcome) -> dict[str, Any]:
    """An outcome as events tell it."""
    if isinstance(outcome, Failure):
        return {"failure": outcome.message}
    return {"reward": outcome.value} if outcome.judged else {}


def sample_of(group: Group) -> dict[str, Any]:
    """The first response of a group, as events tell it."""
    sample = {"prompt": group.prompt.text, "completion": said_in(group, 0), "columns": group.prompt.columns}
    return sample | shown(group.outcomes[0])
