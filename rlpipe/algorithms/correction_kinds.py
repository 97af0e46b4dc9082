"""The kinds of correction by the name a recipe gives them."""

from collections.abc import Callable

import torch

from rlpipe.algorithms.corrections import (
    icepop_mask,
    importance_weights,
    sequence_mask,
    truncated_importance_weights,
    worst_token_mask,
)

Factors = tuple[torch.Tensor, torch.Tensor]
"""The factor of each token's loss, and how many tokens were cut."""


CORRECTIONS: dict[str, Callable[..., Factors]] = {
    "tis": truncated_importance_weights,
    "icepop": icepop_mask,
    "sequence_mask": sequence_mask,
    "worst_token": worst_token_mask,
    "decoupled": importance_weights,
}
"""Each is called with the trainer's old log-probabilities, the engine's, the mask and the kind's own settings. The kind
`none` is not among them: without a correction there is no factor."""
