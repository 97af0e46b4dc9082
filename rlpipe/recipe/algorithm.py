"""Online algorithms: each a small config whose defaults are the paper's or the field's vetted setting."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from rlpipe.recipe.base import Strict


class Grpo(Strict):
    """Group Relative Policy Optimization (Shao et al. 2024, arXiv 2402.03300)."""

    name: Literal["grpo"]
    """Group-relative advantages with PPO's clipped loss; no critic."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Responses sampled per prompt; their mean reward is the baseline."""
    clip_low: NonNegativeFloat = 0.2
    """The probability ratio is clipped below 1 - clip_low."""
    clip_high: NonNegativeFloat = 0.2
    """The probability ratio is clipped above 1 + clip_high."""
    scale_by_std: bool = True
    """Divide advantages by the group's standard deviation."""
    kl_coefficient: NonNegativeFloat = 0.0
    """Weight of the KL penalty to the frozen reference in the loss; 0 runs without a reference."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that KL (Schulman 2020, joschu.net/blog/kl-approx.html)."""


Algorithm = Grpo
"""The algorithms of `task: rl`, told apart by `name`."""


class Schedule(Strict):
    """How long an online run is, and how much each step holds."""

    steps: PositiveInt
    """RL steps; each samples, scores, trains and publishes once."""
    prompts_per_step: PositiveInt = 32
    """Prompts per step; each is sampled `algorithm.group_size` times."""
