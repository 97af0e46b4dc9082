"""What an environment is: `reset` makes the state of an episode, `step` takes a turn of the policy and answers it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rlpipe.data.flow import Failure


@dataclass(frozen=True, slots=True)
class Response:
    """One turn of the policy."""

    text: str
    """Decoded, without special tokens."""
    tokens: tuple[int, ...]
    """As sampled, the token that ended the turn included."""
    complete: bool
    """False if it was cut off: then the episode ends, whatever the environment answers."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The policy is to go on after this message."""

    text: str
    role: Literal["user", "tool"] = "user"
    """Who speaks, in the chat template."""
    reward: float | None = None
    """What the episode is worth should it be cut short here, by its limits of turns or tokens."""
    components: dict[str, float] = field(default_factory=dict)
    """Parts of that reward by name."""
    note: str = ""
    """Where the message comes from, kept beside it for provenance; the policy does not see it."""
    needed: bool = False
    """Whether what the policy says next is needed: an episode that is cut short here has failed."""


@dataclass(frozen=True, slots=True)
class End:
    """The episode is over."""

    reward: float | None = None
    """What it was worth; None where other rewards decide."""
    components: dict[str, float] = field(default_factory=dict)
    """Parts of that reward by name."""


Turn = Reply | End
Request = tuple[Literal["reset"], dict[str, Any], int] | tuple[Literal["step"], Any, Response]
"""A call of an environment, with its arguments."""


class Environment(Protocol):
    """Called from several threads at once, for one episode by one at a time.

    A method may raise: that fails the episode, and nothing else. One that knows why it failed returns a `Failure`.
    """

    def reset(self, columns: dict[str, Any], seed: int) -> Any:
        """The state of a new episode, from the row's columns and, as `prompt`, its rendered text, as `sample_index` its
        number among the samples of the prompt. `seed` belongs to the sample alone: whatever is drawn at random should
        hang on it."""

    def step(self, state: Any, response: Response) -> Turn | Failure:
        """The answer to a turn; `state` may be changed."""

    def many(self, requests: Sequence[Request]) -> list[Any]:
        """What each of them gives, a `Failure` for an exception; asked only where calls are made together."""

    def start(self) -> None:
        """Begin, in the background, whatever takes long before the first step."""

    def ready(self) -> None:
        """Wait until `reset` and `step` can answer."""

    def close(self) -> None: ...
