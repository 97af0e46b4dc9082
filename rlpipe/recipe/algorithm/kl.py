"""The penalty for leaving the reference."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from rlpipe.recipe.base import Strict


class FixedKl(Strict):
    """The same coefficient from beginning to end."""

    kind: Literal["fixed"] = "fixed"
    """The coefficient stays."""


class AdaptiveKl(Strict):
    """The coefficient follows the KL it leads to (Ziegler et al. 2019, arXiv 1909.08593, section 2.2)."""

    kind: Literal["adaptive"] = "adaptive"
    """The coefficient rises while the KL is above the target, and falls while it is below."""
    target: PositiveFloat = 6.0
    """KL to hold, in nats per response."""
    horizon: PositiveFloat = 10000.0
    """Responses over which the coefficient can change by a fifth."""


class Kl(Strict):
    """A penalty for the KL divergence from the frozen reference."""

    placement: Literal["loss", "reward"] = "loss"
    """A term of the loss, or a deduction from the reward of each token."""
    coefficient: NonNegativeFloat = 0.0
    """Weight of the penalty; 0 runs without a reference, 1e-9 measures the KL and changes nothing."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL (Schulman 2020, joschu.net/blog/kl-approx.html); in the loss k2 or k3, as k1 has no pull."""
    controller: Annotated[
        FixedKl | AdaptiveKl, Field(discriminator="kind", description="What becomes of the coefficient over the run.")
    ] = FixedKl()
