"""What asking an endpoint took: requests, tokens, money."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rlpipe.recipe.judging import Prices


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts, of this process since it began. `requests - retries` questions were sent."""

    requests: int = 0
    """Attempts, those that failed included."""
    retries: int = 0
    """Those of them that asked a question again: after a fault, or as the server refused a part of the request."""
    prompt_tokens: int = 0
    """As the server counts them; a prefix that it had in its cache is counted in full."""
    completion_tokens: int = 0
    unmetered: int = 0
    """Answers that came without counts of tokens: if there are some, tokens and cost are too low."""
    cost: float = 0.0
    """In the currency of the recipe's `prices`; 0 without those."""
    without_probabilities: int = 0
    """Choices read from what the judge wrote, as 1 or 0."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """Questions that got no choice, by kind of failure."""

    def __str__(self) -> str:
        said = f"{self.requests:,} requests ({self.retries:,} of them repeats), "
        said += f"{self.prompt_tokens:,} tokens asked, {self.completion_tokens:,} answered"
        said += f", cost {self.cost:.4g}" if self.cost else ""
        said += f"; {self.unmetered:,} answers without counts of tokens" if self.unmetered else ""
        said += f"; {self.without_probabilities:,} without probabilities" if self.without_probabilities else ""
        return said + "".join(f"; {count:,} failed ({kind})" for kind, count in self.failures.items())

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.requests + other.requests,
            self.retries + other.retries,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.unmetered + other.unmetered,
            self.cost + other.cost,
            self.without_probabilities + other.without_probabilities,
            dict(Counter(self.failures) + Counter(other.failures)),
        )

    def since(self, before: "Usage") -> "Usage":
        """What has been added to `before`."""
        return Usage(
            self.requests - before.requests,
            self.retries - before.retries,
            self.prompt_tokens - before.prompt_tokens,
            self.completion_tokens - before.completion_tokens,
            self.unmetered - before.unmetered,
            self.cost - before.cost,
            self.without_probabilities - before.without_probabilities,
            dict(Counter(self.failures) - Counter(before.failures)),
        )


TellUsage = Callable[[str, Usage], None]
"""Takes the name of a judge's reward, and what it has taken since it was told of last."""


def metered(tokens: tuple[int, int] | None, prices: Prices | None) -> Usage:
    """Of one answer, by its prompt's tokens and its own; None where the server did not count."""
    if tokens is None:
        return Usage(unmetered=1)
    prompt, completion = tokens
    cost = (prompt * prices.prompt + completion * prices.completion) / 1e6 if prices else 0.0
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cost=cost)
