"""AdamW as a recipe describes it."""

from typing import Any

import torch

from rlpipe.recipe.training import Optimizer
from rlpipe.training.sharding import size


def adamw(model: torch.nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW that spares biases and norms from weight decay, as transformers' Trainer does."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if settings.weight_decay:
        groups = [
            {"params": [p for p in parameters if len(size(p)) >= 2]},
            {"params": [p for p in parameters if len(size(p)) < 2], "weight_decay": 0.0},
        ]
    common = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
        "weight_decay": settings.weight_decay,
    }
    if settings.optim == "adamw_torch":
        return torch.optim.AdamW(groups, fused=True, **common)
    from bitsandbytes.optim import AdamW

    return AdamW(groups, optim_bits=8, is_paged=settings.optim == "paged_adamw_8bit", **common)
