"""What a judge is asked, and what it answers: one of a few options.

    compare   which of two responses is better (options such as A and B)
    grade     how good one response is (options such as yes and no, or 1 to 5)

Kinds of failure, besides those of `rewards.reward`:

    outside_choice   the judge answers with something that is none of the options, or would
    too_long         the question is longer than what the judge takes
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlpipe.data.flow import Failure
from rlpipe.rewards.judging.usage import Usage
from rlpipe.rewards.reward import Allowance


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation whose next turn is the judge's."""

    question_id: str
    """Of everything that the answer hangs on, besides the judge: the same question has the same id in every run."""
    messages: tuple[dict[str, Any], ...]
    options: tuple[str, ...]
    """What it may answer."""
    seed: int
    """For judges that sample."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the judge prefers."""

    probabilities: tuple[float, ...]
    """Of each option, among the options: they add up to 1. A judge whose probabilities are not known says 1 or 0."""
    mass: float
    """Probability that the judge answers with an option at all; 1 where it did and probabilities are not known."""
    said: str = ""
    """What it wrote, where it wrote something."""


class Arbiter(Protocol):
    """Whoever answers questions."""

    name: str
    """For the provenance of labels: the model, and where it runs."""

    def start(self) -> None:
        """Begin, in the background, whatever takes long before the first answer."""

    def ready(self) -> None:
        """Wait until it can be asked. Raises `RewardUnusable`."""

    def ask(self, questions: Sequence[Question], allowance: Allowance) -> list[Choice | Failure]:
        """One answer per question, in their order. Called from several threads at once."""

    def usage(self) -> Usage | None:
        """What asking has taken so far; None for one that costs nothing but this run's own machines."""

    def close(self) -> None: ...
