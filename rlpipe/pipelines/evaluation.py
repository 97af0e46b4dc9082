"""Held-out evaluation of whatever model the engines serve: greedy answers, and sampled pass@k."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlpipe.algorithms.pass_at_k import pass_at_k
from rlpipe.data.flow import Failure, Group, GroupRequest, Outcome, Prompt, Sampling, Score, Trajectory
from rlpipe.data.seeds import sample_seed
from rlpipe.pipelines.answers import Answers, Ask
from rlpipe.pipelines.stage import Stage
from rlpipe.rollout import spoken

SECONDS_PER_LOOK = 0.5
"""How long engines or rewards are waited for before the progress is told."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Metrics over all held-out prompts, and the greedy answers to a few of them."""

    metrics: dict[str, float]
    samples: list[dict[str, Any]]


class Evaluator:
    """Asks the same held-out prompts with the same seeds each time, so that evaluations compare."""

    def __init__(self, stage: Stage, heldout: Sequence[Prompt]) -> None:
        recipe, self._events = stage.recipe, stage.events
        self._settings, self._seed = recipe.evaluation, recipe.seed
        self._prompts = list(heldout)[: recipe.evaluation.prompts]
        self._greedy = Sampling(recipe.rollout.max_new_tokens, 0.0, stage.stop_token_ids)
        self._sampled = replace(self._greedy, temperature=recipe.evaluation.temperature)

    def run(self, answers: Answers, meanwhile: Callable[[], None] = lambda: None) -> Evaluated:
        """Answers, scored. A response whose reward failed counts in no mean, and is counted itself. `meanwhile` is
        called again and again."""
        greedy = self._answers(answers, meanwhile, self._greedy, 1, "greedy")
        metrics = _greedy_metrics(greedy)
        if self._settings.correct_at is not None:
            metrics["accuracy"] = _mean(
                [float(right) for right in self._judged([group.outcomes[0] for group in greedy])]
            )
        if self._settings.pass_at and self._settings.correct_at is not None:
            sampled = self._answers(answers, meanwhile, self._sampled, self._settings.samples, "sampled")
            metrics |= _pass_metrics([self._judged(group.outcomes) for group in sampled], self._settings.pass_at)
        return Evaluated(metrics, [_sample(group) for group in greedy[: self._settings.show]])

    def _judged(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """Whether each response is correct, of those whose reward could be computed."""
        by, at = self._settings.correct_by, self._settings.correct_at
        values = [o.components.get(by) if by else o.value for o in outcomes if isinstance(o, Score)]
        return [value >= at for value in values if value is not None]

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


def _greedy_metrics(groups: Sequence[Group]) -> dict[str, float]:
    scores = [group.outcomes[0] for group in groups if isinstance(group.outcomes[0], Score)]
    metrics = {"reward": _mean([score.value for score in scores]), "failures": float(len(groups) - len(scores))}
    metrics |= _components(scores)
    metrics["length"] = _mean([float(group.trajectories[0].response_mask.sum()) for group in groups])
    return metrics | turns_metric([group.trajectories[0] for group in groups])


def _components(scores: Sequence[Score]) -> dict[str, float]:
    """The mean of each reward of a mix, where there is more than one: what is learned from beside what is meant."""
    names = dict.fromkeys(name for score in scores for name in score.components)
    if len(names) < 2:
        return {}
    return {f"reward/{n}": _mean([s.components[n] for s in scores if n in s.components]) for n in names}


def turns_metric(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Turns of the policy in the mean; nothing without an environment."""
    turns = [float(len(t.episode.starts)) for t in trajectories if t.episode]
    return {"turns": _mean(turns)} if turns else {}


def _pass_metrics(judged: Sequence[Sequence[bool]], ks: Sequence[int]) -> dict[str, float]:
    """`judged` says of each prompt's scored samples whether they are right."""
    return {f"pass@{k}": _mean([pass_at_k(len(js), sum(js), k) for js in judged if len(js) >= k]) for k in ks}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def shown(outcome: Outcome) -> dict[str, Any]:
    """An outcome as events tell it."""
    return {"failure": outcome.message} if isinstance(outcome, Failure) else {"reward": outcome.value}


def _sample(group: Group) -> dict[str, Any]:
    sample = {"prompt": group.prompt.text, "completion": said_in(group, 0), "columns": group.prompt.columns}
    return sample | shown(group.outcomes[0])
