"""Whoever responds to prompts: the engines of the model, or the data itself."""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from rlpipe.data.flow import FinishReason, Group, GroupRequest, Prompt, Sampling, Score, Trajectory
from rlpipe.data.judge_questions import text_of
from rlpipe.data.records import DataError, shown
from rlpipe.data.seeds import sample_seed
from rlpipe.ledger.book import Lease
from rlpipe.pipelines import episodes, roles
from rlpipe.pipelines.answers import group_of
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.labelling import LabelRecipe, ReadResponses
from rlpipe.rewards.mix import broken_off
from rlpipe.rewards.stage import check_failures
from rlpipe.rollout.episodes import Rollouts
from rlpipe.rollout.pool import EnginePool

UNJUDGED = Score(math.nan, {})
"""Of a response that nobody has looked at yet."""


class Sampled:
    """The model's engines."""

    def __init__(self, stage: Stage, recipe: LabelRecipe, rollouts: Rollouts) -> None:
        self._tokenizer, self._rollouts, self._seed = stage.tokenizer, rollouts, recipe.seed
        self._count, self._allowed = recipe.responses.count, recipe.rewards.max_failure_rate
        rollout = recipe.rollout
        self._sampling = Sampling(rollout.max_new_tokens, rollout.temperature, stage.stop_token_ids)
        self._prompts: dict[str, Prompt] = {}

    def ask(self, leases: Sequence[Lease]) -> None:
        self._prompts |= {lease.lease_id: lease.prompt for lease in leases}
        self._rollouts.submit(roles.POLICY, [self._request(lease) for lease in leases])

    def answered(self, seconds: float) -> list[Group]:
        return [self._group(trajectories) for trajectories in self._rollouts.finished(seconds)]

    def in_hand(self) -> Collection[str]:
        return self._rollouts.asked()

    def check(self, groups: Sequence[Group], step: int) -> None:
        """Episodes whose environment failed have no response."""
        check_failures(groups, step, self._allowed)

    def _request(self, lease: Lease) -> GroupRequest:
        prompt = lease.prompt
        seeds = tuple(sample_seed(self._seed, prompt.prompt_id, 0, i) for i in range(self._count))
        return GroupRequest(lease.lease_id, prompt.prompt_id, prompt.tokens, seeds, self._sampling)

    def _group(self, trajectories: Sequence[Any]) -> Group:
        group = group_of(self._prompts.pop(trajectories[0].group_id), trajectories, self._tokenizer)
        return _unjudged(group)


class Read:
    """The data's own columns."""

    def __init__(self, stage: Stage, recipe: LabelRecipe) -> None:
        self._tokenizer, self._columns = stage.tokenizer, recipe.responses.columns
        self._groups: list[Group] = []

    def ask(self, leases: Sequence[Lease]) -> None:
        self._groups += [self._group(lease) for lease in leases]

    def answered(self, seconds: float) -> list[Group]:
        groups, self._groups = self._groups, []
        return groups

    def in_hand(self) -> Collection[str]:
        return ()

    def check(self, groups: Sequence[Group], step: int) -> None: ...

    def _group(self, lease: Lease) -> Group:
        texts = responses_of(lease.prompt, self._columns)
        encoded = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        trajectories = tuple(_read(lease, i, ids, self._tokenizer.eos_token_id) for i, ids in enumerate(encoded))
        return _unjudged(Group(lease.lease_id, lease.prompt, trajectories, tuple(texts), ()))


def responses_of(prompt: Prompt, columns: Sequence[str]) -> list[str]:
    """The responses that a row has. Raises `DataError`."""
    for name in columns:
        if name not in prompt.columns:
            raise DataError(
                f"the row of {prompt.text!r:.80} has no column `{name}` (it has {sorted(prompt.columns)}); set "
                "responses.columns to those that hold the responses"
            )
    values = [value for name in columns for value in _listed(prompt.columns[name])]
    if not values or not all(_is_response(value) for value in values):
        raise DataError(
            f"the row of {prompt.text!r:.80} has no responses in {', '.join(columns)}: expected texts, lists of texts, "
            f"or messages, found {shown(prompt.columns[columns[0]])}"
        )
    return [text_of(value) for value in values]


def _listed(value: Any) -> list[Any]:
    """The responses of a column: a list of messages is one."""
    if isinstance(value, list) and not all(isinstance(item, dict) for item in value):
        return value
    return [value]


def _is_response(value: Any) -> bool:
    """A text, or messages of which the last one has one."""
    return isinstance(value, str) or (bool(value) and isinstance(value, list) and "content" in value[-1])


def _read(lease: Lease, index: int, ids: list[int], eos: int | None) -> Trajectory:
    """As if the model had written it, of which nobody knows how probable it was."""
    tokens = np.asarray(ids if eos is None else [*ids, eos], np.int32)
    return Trajectory(
        group_id=lease.lease_id,
        prompt_id=lease.prompt.prompt_id,
        sample_index=index,
        prompt_tokens=lease.prompt.tokens,
        response_tokens=tokens,
        response_mask=np.ones(len(tokens), np.int8),
        behaviour_logprobs=np.full(len(tokens), np.nan, np.float32),
        versions=(),
        finish_reason=FinishReason.STOP,
    )


def _unjudged(group: Group) -> Group:
    return replace(group, outcomes=tuple(broken_off(trajectory) or UNJUDGED for trajectory in group.trajectories))


@contextmanager
def responding(stage: Stage, recipe: LabelRecipe, prompts: Sequence[Prompt]) -> Iterator[Sampled | Read]:
    """Whoever the recipe says, started; ended with the block."""
    if isinstance(recipe.responses, ReadResponses):
        yield Read(stage, recipe)
        return
    with ExitStack() as stack:
        stack.callback(stage.runtime.stop)
        with stage.events.phase("start", says=_starting(recipe)):
            environment = stack.enter_context(episodes.environment_of(stage))
            started = stage.runtime.start([roles.engines(stage, stage.model_path)])
            started.ready()
        pool = EnginePool({roles.POLICY: started.handles["engine"]}, recipe.deadlines, recipe.rollout.max_restarts)
        yield Sampled(stage, recipe, episodes.over(pool, environment, stage, prompts))


def _starting(recipe: LabelRecipe) -> str:
    count = recipe.rollout.engines
    return f"starting {count} {recipe.rollout.engine} engine{'s' * (count > 1)} of the model"
