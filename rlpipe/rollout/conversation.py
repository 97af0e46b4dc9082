"""One episode as it grows, token by token: turns of the policy as the engine returned them, and what was said between.

A response begins with the policy's first token and ends with its last one: what an environment says last, with no turn
of the policy behind it, is no part of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from rlpipe.data.flow import (
    Episode,
    FinishReason,
    GroupRequest,
    Outcome,
    Said,
    Tokens,
    Trajectory,
    VersionSpan,
)
from rlpipe.data.seeds import turn_seed


@dataclass(slots=True)
class Conversation:
    """The episode of sample `sample` of a request."""

    request: GroupRequest
    sample: int
    turns: list[Trajectory] = field(default_factory=list)
    """Each turn of the policy, with the prompt it continued."""
    between: list[Tokens] = field(default_factory=list)
    """Tokens after each turn but the last."""
    replies: list[Said] = field(default_factory=list)

    @property
    def last(self) -> Trajectory:
        return self.turns[-1]

    @property
    def length(self) -> int:
        """Tokens up to the end of the policy's last turn, the prompt included."""
        return len(self.last.prompt_tokens) + len(self.last.response_tokens)

    def reply(self, said: Said, tokens: Tokens) -> None:
        """The environment has spoken."""
        self.replies.append(said)
        self.between.append(tokens)

    def next_request(self, group_id: str, longest: int) -> GroupRequest:
        """Ask for the next turn: everything so far as the prompt, one seed of its own. `longest` is the room for prompt
        and turn together, in tokens."""
        tokens = np.concatenate([self.last.prompt_tokens, self.last.response_tokens, self.between[-1]])
        room = min(self.request.sampling.max_new_tokens, longest - len(tokens))
        seed = turn_seed(self.request.seeds[self.sample], len(self.turns))
        sampling = replace(self.request.sampling, max_new_tokens=room)
        return replace(
            self.request, group_id=group_id, prompt_tokens=tokens, seeds=(seed,), sampling=sampling
        )  # of the same conversation

    def trajectory(self, reason: FinishReason, outcome: Outcome | None) -> Trajectory:
        """The whole episode; environment tokens have mask 0 and log-probability 0."""
        steps = [len(turn.response_tokens) + len(b) for turn, b in zip(self.turns, self.between, strict=False)]
        starts = np.cumsum([0, *steps])
        ends = [start + len(turn.response_tokens) for start, turn in zip(starts, self.turns, strict=True)]
        return Trajectory(
            group_id=self.request.group_id,
            prompt_id=self.request.prompt_id,
            sample_index=self.sample,
            prompt_tokens=self.request.prompt_tokens,
            response_tokens=self._interleaved(lambda turn: turn.response_tokens),
            response_mask=self._interleaved(lambda turn: turn.response_mask, silent=True),
            behaviour_logprobs=self._interleaved(lambda turn: turn.behaviour_logprobs, silent=True),
            versions=_joined(self.turns, starts),
            finish_reason=reason,
            episode=Episode(tuple(map(int, starts)), tuple(map(int, ends)), tuple(self.replies), outcome),
        )

    def _interleaved(self, of: Callable[[Trajectory], np.ndarray], silent: bool = False) -> np.ndarray:
        """Arrays of the turns end to end, with the environment's tokens between them, or with zeros in their place."""
        parts = []
        for i, turn in enumerate(self.turns):
            parts.append(of(turn))
            if i < len(self.between):
                parts.append(np.zeros_like(of(turn), shape=len(self.between[i])) if silent else self.between[i])
        return np.concatenate(parts)


def _joined(turns: list[Trajectory], starts: np.ndarray) -> tuple[VersionSpan, ...]:
    """Version spans of all turns, counted from the response's first token; a span begins where the version changes."""
    spans: list[VersionSpan] = []
    for turn, start in zip(turns, starts, strict=True):
        for span in turn.versions:
            if not spans or spans[-1].version != span.version:
                spans.append(VersionSpan(int(start) + span.first_token, span.version))
    return tuple(spans)
