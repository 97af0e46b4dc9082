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


def _decoupled(old_logprobs_BT: torch.Tensor, behaviour_logprobs_BT: torch.Tensor, mask_BT: torch.Tensor) -> Factors:
    """`decoupled_ppo`'s factor: with `ppo_clip` on the old log-probabilities, the two together are decoupled PPO."""
    return importance_weights(old_logprobs_BT, behaviour_logprobs_BT, mask_BT), mask_BT.new_zeros(())


CORRECTIONS: dict[str, Callable[..., Factors]] = {
    "tis": truncated_importance_weights,
    "icepop": icepop_mask,
    "sequence_mask": sequence_mask,
    "worst_token": worst_token_mask,
    "decoupled": _decoupled,
}
"""Each is called with the trainer's old log-probabilities, the engine's, the mask and the kind's own settings. The kind
`none` is not among them: without a correction there is no factor."""
