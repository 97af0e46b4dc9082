"""The plain policy gradient."""

import torch


def policy_gradient(logprobs_BT: torch.Tensor, advantages_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """REINFORCE (Williams 1992, doi 10.1007/BF00992696): no ratio and no clip, so right on policy only.

        loss = -A * logprob

    Returns the loss of each token, and zeros: nothing is clipped.

    Shapes: all [B, T]; log-probabilities in nats. Nothing is masked here.
    """
    return -advantages_BT * logprobs_BT, torch.zeros_like(logprobs_BT)
