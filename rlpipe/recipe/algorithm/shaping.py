"""What happens to rewards before they become advantages, and to groups that teach nothing."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from rlpipe.recipe.base import Strict


class OverlongPenalty(Strict):
    """DAPO's soft punishment of long responses: from 0 to -1 over a buffer (arXiv 2503.14476, eq. 13)."""

    kind: Literal["overlong"] = "overlong"
    """The reward falls by up to 1 as the response nears `rollout.max_new_tokens`, that of all turns together."""
    buffer: PositiveInt | Literal["auto"] = "auto"
    """Tokens before the limit in which it falls; auto is a fifth of the limit, as in the paper (4096 of 20480)."""


class TruncationPenalty(Strict):
    """A fixed price for responses that the limit cut off."""

    kind: Literal["truncation_penalty"] = "truncation_penalty"
    """The reward of a response that was cut off falls by a fixed amount."""
    penalty: NonNegativeFloat = 1.0
    """What is deducted, in reward units."""


class MaskTruncated(Strict):
    """DAPO's overlong filtering (arXiv 2503.14476, section 3.4)."""

    kind: Literal["mask_truncated"] = "mask_truncated"
    """A response that was cut off is neither trained on nor in a baseline."""


class ClipRewards(Strict):
    """Rewards within bounds."""

    kind: Literal["clip"] = "clip"
    """The reward is limited."""
    low: float = -5.0
    """Smallest reward."""
    high: float = 5.0
    """Largest reward."""

    @model_validator(mode="after")
    def _in_order(self) -> "ClipRewards":
        if self.low >= self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}: every reward would be the same")
        return self


class WhitenRewards(Strict):
    """Rewards at unit standard deviation over the step; their mean stays (Ziegler et al. 2019, arXiv 1909.08593)."""

    kind: Literal["whiten"] = "whiten"
    """Rewards are divided by their spread over the step."""


Shaping = Annotated[
    OverlongPenalty | TruncationPenalty | MaskTruncated | ClipRewards | WhitenRewards, Field(discriminator="kind")
]


class DynamicSampling(Strict):
    """Groups whose rewards are all equal are replaced by further prompts (DAPO, arXiv 2503.14476, section 3.2)."""

    max_rounds: PositiveInt = 10
    """Times that a step samples replacements; what still teaches nothing then stays in the step, with a warning."""
