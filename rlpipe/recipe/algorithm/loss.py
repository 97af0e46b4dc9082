"""What is minimised. Each kind's equation and paper stand at its function in `rlpipe/algorithms`."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from rlpipe.recipe.base import Strict


class PpoClipLoss(Strict):
    """PPO's clipped ratio (Schulman et al. 2017, arXiv 1707.06347); bounds that differ are DAPO's clip-higher."""

    kind: Literal["ppo_clip"] = "ppo_clip"
    """The ratio of each token, clipped."""
    clip_low: NonNegativeFloat = 0.2
    """The probability ratio is clipped below 1 - clip_low."""
    clip_high: NonNegativeFloat = 0.2
    """The probability ratio is clipped above 1 + clip_high."""


class DualClipLoss(Strict):
    """PPO's, with a second bound for negative advantages (Ye et al. 2020, arXiv 1912.09729)."""

    kind: Literal["dual_clip"] = "dual_clip"
    """The ratio of each token, clipped, and bounded where the advantage is negative."""
    clip_low: NonNegativeFloat = 0.2
    """The probability ratio is clipped below 1 - clip_low."""
    clip_high: NonNegativeFloat = 0.2
    """The probability ratio is clipped above 1 + clip_high."""
    bound: Annotated[float, Field(gt=1)] = 3.0
    """A negative advantage costs at most this many times itself; the paper's c."""


class GspoLoss(Strict):
    """The ratio of the whole response (GSPO, Zheng et al. 2025, arXiv 2507.18071)."""

    kind: Literal["gspo"] = "gspo"
    """The geometric mean of the response's ratios, clipped: bounds are a thousand times smaller than PPO's."""
    clip_low: NonNegativeFloat = 3e-4
    """The sequence's ratio is clipped below 1 - clip_low."""
    clip_high: NonNegativeFloat = 4e-4
    """The sequence's ratio is clipped above 1 + clip_high."""


class CispoLoss(Strict):
    """The ratio is a clipped weight, so that no token loses its gradient (MiniMax-M1, arXiv 2506.13585)."""

    kind: Literal["cispo"] = "cispo"
    """The policy gradient, weighted by the clipped ratio of each token."""
    clip_low: NonNegativeFloat = 1.0
    """The weight is at least 1 - clip_low; 1 leaves the bound out."""
    clip_high: NonNegativeFloat = 4.0
    """The weight is at most 1 + clip_high."""


class PolicyGradientLoss(Strict):
    """REINFORCE: no ratio, no clip (Williams 1992)."""

    kind: Literal["policy_gradient"] = "policy_gradient"
    """Log-probability times advantage; right for one update per batch only."""


Loss = Annotated[
    PpoClipLoss | DualClipLoss | GspoLoss | CispoLoss | PolicyGradientLoss,
    Field(discriminator="kind", description="What is minimised."),
]

Aggregation = Annotated[
    Literal["token_mean", "sequence_mean", "sequence_mean_token_sum", "constant"],
    Field(
        description="How the tokens' losses become one: mean over the step's tokens (DAPO), mean over each response "
        "and then over responses (GRPO's paper), sum over each response and mean over responses, or that divided by "
        "`rollout.max_new_tokens` (Dr.GRPO)."
    ),
]
