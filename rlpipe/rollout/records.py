"""What every engine records about its samples, and how it checks what it is asked."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rlpipe.data.flow import FinishReason, GroupRequest, Tokens, Trajectory, VersionSpan
from rlpipe.rollout.engine import Health


class NotCurrent(RuntimeError):
    """An engine was asked for samples before it was told which weight version it serves."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine can serve. Its checks raise ValueError that names the setting to change."""

    max_model_len: int
    vocab_size: int

    def check_request(self, request: GroupRequest) -> None:
        prompt, new = len(request.prompt_tokens), request.sampling.max_new_tokens
        who = f"group {request.group_id} (prompt {request.prompt_id})"
        if prompt == 0 or new < 1 or not request.seeds:
            raise ValueError(
                f"{who}: needs prompt tokens, seeds and max_new_tokens of at least 1; has {prompt}, "
                f"{len(request.seeds)} and {new}"
            )
        if prompt + new > self.max_model_len:
            raise ValueError(
                f"{who}: {prompt} prompt tokens + max_new_tokens {new} exceed the engine's max_model_len "
                f"{self.max_model_len}; raise rollout.max_model_len or lower rollout.max_new_tokens"
            )
        self._check_tokens(who, request.prompt_tokens)

    def check_probes(self, sequences: Sequence[Tokens]) -> None:
        for tokens in sequences:
            if not 2 <= len(tokens) < self.max_model_len:
                raise ValueError(f"a probe needs 2 to {self.max_model_len - 1} tokens, has {len(tokens)}")
            self._check_tokens("a probe", tokens)

    def _check_tokens(self, who: str, tokens: Tokens) -> None:
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise ValueError(
                f"{who}: has token {tokens.max()}, the model knows 0 to {self.vocab_size - 1}; model and tokenizer do "
                "not belong together"
            )


def spans_of(spans: Iterable[VersionSpan], length: int) -> tuple[VersionSpan, ...]:
    """The spans that a response of `length` tokens reaches."""
    return tuple(span for span in spans if span.first_token < length)


def trajectory(
    request: GroupRequest,
    sample: int,
    tokens: np.ndarray,
    logprobs: np.ndarray,
    spans: Sequence[VersionSpan],
    reason: FinishReason,
) -> Trajectory:
    """A response written by the policy from its first token to its last."""
    return Trajectory(
        group_id=request.group_id,
        prompt_id=request.prompt_id,
        sample_index=sample,
        prompt_tokens=request.prompt_tokens,
        response_tokens=tokens,
        response_mask=np.ones(len(tokens), np.int8),
        behaviour_logprobs=logprobs,
        versions=tuple(spans),
        finish_reason=reason,
    )


class Pulse:
    """An engine's state for `health`: written by the thread that steps, read by any. Plain attributes, no lock."""

    def __init__(self, version: int | None) -> None:
        self.version = version
        self.outstanding = 0
        self._last_step = time.monotonic()

    def beat(self, finished: int = 0) -> None:
        """A step has ended."""
        self.outstanding -= finished
        self._last_step = time.monotonic()

    def require_current(self) -> None:
        """Raises `NotCurrent` for an engine that has weights of no known version."""
        if self.version is None:
            raise NotCurrent("this engine was started without a weight version (restarted?); publish to it first")

    def health(self) -> Health:
        return Health(self.version, self.outstanding, time.monotonic() - self._last_step)
