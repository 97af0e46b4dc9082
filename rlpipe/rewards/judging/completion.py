"""A chat completion, as OpenAI's API has it."""

import json
import math
from dataclasses import dataclass
from typing import Any

from rlpipe.data.flow import Failure

NOT_AS_AGREED = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
"""What reading JSON of another shape raises."""


@dataclass(frozen=True, slots=True)
class Position:
    """One token of the answer, and what else might have stood there."""

    token: str
    probability: float
    candidates: tuple[tuple[str, float], ...]
    """The likeliest tokens there with their probabilities, and the one that was written."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge wrote."""

    text: str
    cut: bool
    """Whether it had more to say than it might."""
    positions: tuple[Position, ...]
    """Its tokens, as far as the server gives their alternatives; empty if it does not."""


def parse(body: bytes) -> Any | Failure:
    """The JSON of an answer."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return _not_agreed(body.decode(errors="replace"))


def tokens_used(said: Any) -> tuple[int, int] | None:
    """Tokens of the prompt and of the answer, where the server counts them."""
    try:
        prompt, completion = said["usage"]["prompt_tokens"], said["usage"]["completion_tokens"]
    except NOT_AS_AGREED:
        return None
    return (prompt, completion) if isinstance(prompt, int) and isinstance(completion, int) else None


def read_answer(said: Any) -> Answer | Failure:
    """The first choice of a completion."""
    try:
        choice = said["choices"][0]
        message = choice["message"]
        text = message["content"] or message.get("refusal") or ""
        tokens = (choice.get("logprobs") or {}).get("content") or []
        positions = tuple(_position(token) for token in tokens if token["top_logprobs"])
    except NOT_AS_AGREED:
        return _not_agreed(json.dumps(said))
    if not isinstance(text, str):
        return _not_agreed(json.dumps(said))
    return Answer(text, choice.get("finish_reason") == "length", positions if len(positions) == len(tokens) else ())


def _position(token: dict[str, Any]) -> Position:
    likeliest = [(str(other["token"]), _probability(other["logprob"])) for other in token["top_logprobs"]]
    written = (str(token["token"]), _probability(token["logprob"]))
    missing = [] if written[0] in dict(likeliest) else [written]
    return Position(*written, tuple(likeliest + missing))


def _probability(logprob: float) -> float:
    """Raises ValueError for what is no log-probability; rounding may have left it above 0."""
    if not logprob <= 0.01:
        raise ValueError(f"{logprob} is no log-probability")
    return math.exp(min(logprob, 0.0))


def _not_agreed(text: str) -> Failure:
    return Failure("bad_answer", f"expected a chat completion, got {text!r:.200}")
