"""Episodes of several turns over the engine pool.

    pool: first turns of a group ──> environment: one step each ──> pool: continuations, each a group of one ──> …

To its callers this is the pool: requests go in, whole groups come out. Engines stay busy, since an episode goes on as
soon as its own environment has answered. What an episode says depends on its sample's seed alone: each turn has a seed
hashed from it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from rlpipe.data.flow import Failure, FinishReason, GroupRequest, Outcome, Prompt, Said, Score, Tokens, Trajectory
from rlpipe.data.seeds import environment_seed
from rlpipe.rollout.conversation import Conversation
from rlpipe.rollout.environments.environment import Reply, Response, Turn
from rlpipe.rollout.environments.stage import EnvironmentStage
from rlpipe.rollout.pool import EnginePool, FinishedGroup
from rlpipe.rollout.turn_marks import TurnMarks
from rlpipe.runtime.handle import Pending, first_ready

SECONDS_PER_LOOK = 0.02
"""How long engines are waited for while environments work, or the other way round."""


class Rollouts(Protocol):
    """Answers requests, whole groups at a time: the `EnginePool` itself for a single turn, or `Episodes` over it."""

    def submit(self, model: str, requests: Sequence[GroupRequest]) -> None:
        """Answer these with `model`."""

    def finished(self, seconds: float, also: Sequence[Pending[Any]] = ()) -> list[FinishedGroup]:
        """Groups that are complete, waiting up to `seconds` for the first, or until one of `also`, which are calls of
        other roles, is finished."""

    def asked(self) -> AbstractSet[str]:
        """The ids of groups submitted and not yet finished."""

    def abort(self, group_ids: Sequence[str]) -> None:
        """These are not asked for any more. Ids that are not outstanding are ignored."""


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """When an episode is cut short."""

    max_turns: int
    longest: int
    """Tokens of prompt and response: what the model, or rollout.max_model_len, allows."""


class Episodes:
    """See `Rollouts`. Whatever the pool raises is raised here, and `DataError` for a chat template that cannot go on;
    an environment that raises or is late fails its own episode."""

    def __init__(
        self,
        pool: EnginePool,
        environment: EnvironmentStage,
        prompts: Mapping[str, Prompt],
        marks: TurnMarks,
        decode: Callable[[Tokens], str],
        limits: EpisodeLimits,
    ) -> None:
        """`prompts` by id: an episode's environment is told the row's columns."""
        self._pool, self._environment, self._prompts = pool, environment, prompts
        self._marks, self._decode, self._limits = marks, decode, limits
        self._groups: dict[str, _Group] = {}
        self._whole: list[FinishedGroup] = []
        self._talking: dict[str, _Episode] = {}
        """Episodes whose turn an engine is writing, by the id of that request; first turns stand in `_groups`."""

    def submit(self, model: str, requests: Sequence[GroupRequest]) -> None:
        """Begin the episodes of these groups. Raises ValueError for a group id that is outstanding already."""
        if twice := self._groups.keys() & {request.group_id for request in requests}:
            raise ValueError(f"groups submitted twice: {', '.join(sorted(twice)[:3])}")
        requests = [replace(request, conversation=request.group_id) for request in requests]
        self._pool.submit(model, requests)
        for request in requests:
            prompt = self._prompts[request.prompt_id]
            self._groups[request.group_id] = group = _Group(model, request)
            for episode in group.episodes:
                sample = episode.talk.sample
                columns = {**prompt.columns, "prompt": prompt.text, "sample_index": sample}
                self._environment.reset(episode, columns, environment_seed(request.seeds[sample]))

    def finished(self, seconds: float, also: Sequence[Pending[Any]] = ()) -> list[FinishedGroup]:
        """Groups whose episodes have all ended. See `Rollouts.finished`."""
        until = time.monotonic() + seconds
        while self._groups or also:
            self._look(max(0.0, until - time.monotonic()), also)
            if self._whole or time.monotonic() >= until or first_ready(also, 0.0):
                break
        whole, self._whole = self._whole, []
        return whole

    def asked(self) -> AbstractSet[str]:
        """The ids of groups whose episodes have not all ended."""
        return self._groups.keys()

    def abort(self, group_ids: Sequence[str]) -> None:
        """See `Rollouts.abort`. What an environment still says of these is not heard."""
        doomed = set(group_ids)
        talking = [turn for turn, episode in self._talking.items() if episode.talk.request.group_id in doomed]
        self._pool.abort([*group_ids, *talking])
        for turn in talking:
            del self._talking[turn]
        self._groups = {group_id: group for group_id, group in self._groups.items() if group_id not in doomed}
        self._whole = [group for group in self._whole if group[0].group_id not in doomed]

    def _goes_on(self, episode: "_Episode") -> bool:
        group = self._groups.get(episode.talk.request.group_id)
        return group is not None and episode in group.episodes

    def _look(self, seconds: float, also: Sequence[Pending[Any]]) -> None:
        """One look at engines and environments, at whichever has something to do for `seconds` at most, or until one of
        `also` is finished."""
        wait = min(seconds, SECONDS_PER_LOOK) if self._environment.outstanding else seconds
        for turns in self._pool.finished(wait, also):
            self._heard(turns)
        wait = 0.0 if self._pool.outstanding else min(seconds, SECONDS_PER_LOOK)
        answers = [(e, answer) for e, answer in self._environment.finished(wait) if self._goes_on(e)]
        goes_on = [episode for episode, answer in answers if self._answered(episode, answer)]
        for model in {episode.model for episode in goes_on}:
            self._pool.submit(model, [self._continuation(episode) for episode in goes_on if episode.model == model])

    def _heard(self, turns: FinishedGroup) -> None:
        """The policy has spoken: in all samples of a group for the first time, or in one that goes on."""
        group_id = turns[0].group_id
        talking = self._talking.pop(group_id, None)
        for episode, turn in zip([talking] if talking else self._groups[group_id].episodes, turns, strict=True):
            episode.talk.turns.append(turn)
            episode.unanswered = True
            self._ask(episode)

    def _ask(self, episode: "_Episode") -> None:
        """Have the environment answer, once there is both a turn and the state to answer it in."""
        if not (episode.unanswered and episode.is_set):
            return
        if isinstance(episode.state, Failure):
            self._end(episode, episode.talk.last.finish_reason, episode.state)
            return
        episode.unanswered = False
        turn = episode.talk.last
        text, tokens = self._decode(turn.response_tokens), tuple(turn.response_tokens.tolist())
        response = Response(text, tokens, complete=turn.finish_reason is FinishReason.STOP)
        self._environment.step(episode, episode.state, response)

    def _answered(self, episode: "_Episode", answer: Any) -> bool:
        """Take in what the environment said; whether the policy is to speak next."""
        if not episode.is_set:
            episode.state, episode.is_set = answer, True
            self._ask(episode)
            return False
        if isinstance(answer, Failure):
            self._end(episode, episode.talk.last.finish_reason, answer)
            return False
        return self._replied(episode, answer)

    def _replied(self, episode: "_Episode", turn: Turn) -> bool:
        talk, tokens = episode.talk, np.empty(0, np.int32)
        reason: FinishReason | None = talk.last.finish_reason
        if isinstance(turn, Reply) and reason is FinishReason.STOP:
            said = Said(turn.role, turn.text, turn.note)
            tokens = self._marks.tokens(said, int(talk.last.response_tokens[-1]))
            reason = self._cut(talk, len(tokens))
        if reason is not None:
            self._end(episode, reason, self._worth(turn, talk.length + len(tokens)))
            return False
        talk.reply(said, tokens)
        return True

    def _cut(self, talk: Conversation, reply: int) -> FinishReason | None:
        """Why there is no further turn after a reply of so many tokens, if so."""
        if len(talk.turns) >= self._limits.max_turns:
            return FinishReason.TURNS
        return FinishReason.LENGTH if talk.length + reply >= self._limits.longest else None

    def _worth(self, turn: Turn, length: int) -> Outcome | None:
        """The outcome of an episode that ends with this word of the environment, `length` tokens long."""
        if not (isinstance(turn, Reply) and turn.needed):
            return outcome_of(turn)
        return Failure(
            "unfinished",
            f"cut short before its environment was done: prompt, response and what was said next are {length} tokens "
            f"of at most {self._limits.longest}, with at most {self._limits.max_turns} turns; lower "
            "rollout.max_new_tokens, or raise rollout.max_model_len where the model takes more",
        )

    def _continuation(self, episode: "_Episode") -> GroupRequest:
        talk = episode.talk
        group_id = f"{talk.request.group_id}/s{talk.sample}/t{len(talk.turns)}"
        self._talking[group_id] = episode
        return talk.next_request(group_id, self._limits.longest)

    def _end(self, episode: "_Episode", reason: FinishReason, outcome: Outcome | None) -> None:
        group = self._groups[episode.talk.request.group_id]
        group.finished.append(episode.talk.trajectory(reason, outcome))
        if len(group.finished) == len(group.episodes):
            del self._groups[episode.talk.request.group_id]
            self._whole.append(tuple(sorted(group.finished, key=lambda t: t.sample_index)))


def outcome_of(turn: Turn) -> Outcome | None:
    """The environment's reward, checked; None where it gave none."""
    if turn.reward is None:
        return None
    values = [turn.reward, *turn.components.values()]
    if all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return Score(float(turn.reward), {name: float(value) for name, value in turn.components.items()})
    return Failure("not_a_number", f"the environment's reward is {turn.reward!r:.100} {turn.components!r:.200}")


class _Group:
    """A request whose episodes are under way."""

    def __init__(self, model: str, request: GroupRequest) -> None:
        self.episodes = [_Episode(model, Conversation(request, i)) for i in range(len(request.seeds))]
        self.finished: list[Trajectory] = []


class _Episode:
    """One sample: what was said, and what is waited for."""

    def __init__(self, model: str, talk: Conversation) -> None:
        self.model, self.talk = model, talk
        self.state: Any = None
        self.is_set = False
        """Whether `state` is there, or a `Failure` in its place."""
        self.unanswered = False
        """Whether the policy has said something that the environment was not asked about yet."""
