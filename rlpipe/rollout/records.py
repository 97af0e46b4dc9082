"""What every engine records about its samples, and how it checks what it is asked."""

import time
from collections.abc import Iterable, Sequence

import numpy as np

from rlpipe.data.flow import FinishReason, GroupRequest, Trajectory, VersionSpan
from rlpipe.rollout.engine import Health


class NotCurrent(RuntimeError):
    """An engine was asked for samples before it was told which weight version it serves."""


def check_request(request: GroupRequest, max_model_len: int) -> None:
    """Raises ValueError, naming the setting to change, for a request that could not be served in full."""
    prompt, new = len(request.prompt_tokens), request.sampling.max_new_tokens
    who = f"group {request.group_id} (prompt {request.prompt_id})"
    if prompt == 0 or new < 1 or not request.seeds:
        raise ValueError(
            f"{who}: needs prompt tokens, seeds and max_new_tokens of at least 1; has {prompt}, "
            f"{len(request.seeds)} and {new}"
        )
    if prompt + new > max_model_len:
        raise ValueError(
            f"{who}: {prompt} prompt tokens + max_new_tokens {new} exceed the engine's max_model_len {max_model_len}; "
            "raise rollout.max_model_len or lower rollout.max_new_tokens"
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
