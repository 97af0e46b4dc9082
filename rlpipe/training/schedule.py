"""The learning rate as a function of the optimizer step alone, so that there is no scheduler state to restore."""

import math

from rlpipe.recipe.training import Optimizer


def learning_rate(optimizer: Optimizer, step: int, total_steps: int) -> float:
    """Rate of optimizer step `step` (from 0) out of `total_steps`.

    It rises linearly from 0 over the warm-up steps, and then stays, or falls to 0 after the last step.
    """
    if step < optimizer.warmup_steps:
        return optimizer.learning_rate * (step + 1) / (optimizer.warmup_steps + 1)
    progress = min(1.0, (step - optimizer.warmup_steps) / max(1, total_steps - optimizer.warmup_steps))
    match optimizer.lr_scheduler_type:
        case "constant":
            factor = 1.0
        case "linear":
            factor = 1.0 - progress
        case "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * progress))
    return optimizer.learning_rate * factor
