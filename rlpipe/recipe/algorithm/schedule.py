"""How long an online run is."""

from pydantic import PositiveInt

from rlpipe.recipe.base import Strict


class Schedule(Strict):
    """How long an online run is, and how much each step holds."""

    steps: PositiveInt
    """RL steps; each samples, scores, trains and publishes once."""
    prompts_per_step: PositiveInt = 32
    """Prompts per step; each is sampled `algorithm.group_size` times."""
