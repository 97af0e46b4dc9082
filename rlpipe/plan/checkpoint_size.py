"""How many bytes a checkpoint of a trained role has, before there is one."""

from rlpipe.recipe.training import Optimizer

MASTER_BYTES = 4
"""Weights in float32, which the optimizer steps."""
MEAN_BYTES = {"adamw_torch": 4, "adamw_8bit": 1, "paged_adamw_8bit": 1}
"""Of each of AdamW's two running means."""


def state_bytes(trained: int, optim: Optimizer) -> int:
    """What goes on from it: trained weights and the optimizer's two running means of each. At least so many: ranks also
    write buffers, and what they do not train."""
    return trained * (MASTER_BYTES + 2 * MEAN_BYTES[optim.optim])
