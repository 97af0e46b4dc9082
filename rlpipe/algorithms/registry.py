"""The algorithms by the name a recipe gives them."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from rlpipe.algorithms.grpo import Grpo


class Algorithm(Protocol):
    """What the training loop asks of an algorithm. `Grpo` documents shapes and meaning."""

    @property
    def needs_reference(self) -> bool: ...

    def advantages(self, rewards_B: torch.Tensor, groups_B: torch.Tensor, valid_B: torch.Tensor) -> torch.Tensor: ...

    def loss(
        self,
        *,
        logprobs_BT: torch.Tensor,
        behaviour_logprobs_BT: torch.Tensor,
        advantages_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        normalizer: float,
        old_logprobs_BT: torch.Tensor | None = None,
        reference_logprobs_BT: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...


ALGORITHMS: dict[str, type[Algorithm]] = {"grpo": Grpo}


def build(name: str, settings: Mapping[str, Any]) -> Algorithm:
    """The algorithm `name` with its settings (the recipe's, without `name` and the sampling-side `group_size`)."""
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm {name!r} is unknown; there are: {', '.join(sorted(ALGORITHMS))}")
    return ALGORITHMS[name](**settings)
