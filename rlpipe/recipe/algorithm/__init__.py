"""Online algorithms: each a small config of typed parts, its defaults the paper's or the field's vetted setting."""

from rlpipe.recipe.algorithm.preset import Preset
from rlpipe.recipe.algorithm.presets import PRESETS, Algorithm
from rlpipe.recipe.algorithm.schedule import Schedule

__all__ = ["PRESETS", "Algorithm", "Preset", "Schedule"]
