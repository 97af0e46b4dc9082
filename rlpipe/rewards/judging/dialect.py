"""What of OpenAI's chat completions a server takes. Not every one gives log-probabilities, or so many of them."""

from dataclasses import dataclass, replace
from typing import Any

from rlpipe.recipe.judging import EndpointJudge
from rlpipe.rewards.judging.question import Question

MOST = 20
"""Likeliest tokens of a position: what OpenAI gives at most, and vLLM unless it is told otherwise."""
FEW = 5
"""What servers give that give less."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How to ask. Each refusal that names a part of the request leads to a simpler one."""

    likeliest: int
    """Tokens whose log-probabilities are asked for; 0: none are."""
    limit: str = "max_tokens"
    """What the server calls the most tokens of an answer."""

    def request(self, judge: EndpointJudge, question: Question) -> dict[str, Any]:
        asked = {
            "model": judge.model,
            "messages": list(question.messages),
            "temperature": judge.temperature,
            self.limit: judge.max_tokens,
        }
        if self.likeliest:
            asked |= {"logprobs": True, "top_logprobs": self.likeliest}
        if judge.temperature > 0:
            asked["seed"] = question.seed % 2**31  # some servers keep it in 32 bits
        return asked

    def simpler(self, refusal: str) -> "Dialect | None":
        """The next one to try after this refusal, if that may help."""
        if self.limit == "max_tokens" and "max_completion_tokens" in refusal:
            return replace(self, limit="max_completion_tokens")
        if self.likeliest and "logprob" in refusal.lower():
            return replace(self, likeliest=FEW if self.likeliest > FEW else 0)
        return None

    def says(self, before: "Dialect") -> str:
        """What is worth a warning of a server that took this one and not that before; empty if nothing is."""
        if self.likeliest == before.likeliest:
            return ""
        if self.likeliest:
            return f"gives the log-probabilities of no more than {self.likeliest} tokens: rarer options count as 0"
        return HARD


HARD = "gives no log-probabilities: its preference is read from what it writes, as 1 or 0"
