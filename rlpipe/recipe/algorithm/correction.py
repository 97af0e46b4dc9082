"""Factors for responses that another policy sampled than the one that is trained: of another engine, or older."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from rlpipe.recipe.base import Strict


class NoCorrection(Strict):
    """Responses count as if the trainer's own policy had sampled them."""

    kind: Literal["none"] = "none"
    """No factor; the mismatch is measured all the same."""


class TisCorrection(Strict):
    """Truncated importance sampling of tokens (Yao et al. 2025, fengyao.notion.site/off-policy-rl)."""

    kind: Literal["tis"] = "tis"
    """Each token counts by its ratio, capped."""
    cap: PositiveFloat = 2.0
    """Largest factor."""


class Bounded(Strict):
    """A correction with a smallest and a largest ratio."""

    low: PositiveFloat
    high: PositiveFloat

    @model_validator(mode="after")
    def _in_order(self) -> "Bounded":
        if self.low >= self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}: no token would count")
        return self


class IcePopCorrection(Bounded):
    """Tokens on which engine and trainer disagree are left out (Ring-1T, arXiv 2510.18855)."""

    kind: Literal["icepop"] = "icepop"
    """Each token counts by its ratio, or not at all outside of the bounds."""
    low: PositiveFloat = 0.5
    """Smallest ratio that counts."""
    high: PositiveFloat = 5.0
    """Largest ratio that counts."""


class SequenceMaskCorrection(Bounded):
    """Responses on which engine and trainer disagree in the mean are left out."""

    kind: Literal["sequence_mask"] = "sequence_mask"
    """A response counts fully or not at all, by the geometric mean of its tokens' ratios."""
    low: PositiveFloat = 0.99
    """Smallest mean ratio that counts."""
    high: PositiveFloat = 1.01
    """Largest mean ratio that counts."""


class WorstTokenCorrection(Bounded):
    """Responses with a single token on which engine and trainer disagree are left out."""

    kind: Literal["worst_token"] = "worst_token"
    """A response counts fully or not at all, by the worst of its tokens' ratios."""
    low: PositiveFloat = 1e-4
    """Smallest ratio that any token may have."""
    high: PositiveFloat = 1e4
    """Largest ratio that any token may have."""


class DecoupledCorrection(Strict):
    """Decoupled PPO: the plain importance weight (Hilton et al. 2021, arXiv 2110.00641; AReaL, arXiv 2505.24298)."""

    kind: Literal["decoupled"] = "decoupled"
    """Each token counts by its ratio, without a cap; `tis` is the same with one."""


Correction = Annotated[
    NoCorrection
    | TisCorrection
    | IcePopCorrection
    | SequenceMaskCorrection
    | WorstTokenCorrection
    | DecoupledCorrection,
    Field(discriminator="kind", description="What is done about responses that the trainer's policy did not sample."),
]
