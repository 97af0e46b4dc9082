"""PPO whose trust region is not tied to the policy that sampled."""

import torch

from rlpipe.algorithms.aggregate import keep
from rlpipe.algorithms.corrections import importance_weights
from rlpipe.algorithms.ppo_clip import ppo_clip


def decoupled_ppo(
    logprobs_BT: torch.Tensor,
    proximal_logprobs_BT: torch.Tensor,
    behaviour_logprobs_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoupled PPO (Hilton et al. 2021, arXiv 2110.00641, section 3; for language models AReaL, Fu et al. 2025,
    arXiv 2505.24298, section 5.2).

        factor = proximal / behaviour                                   corrects for who sampled; no gradient
        ratio  = policy / proximal                                      what the clip bounds
        loss   = -factor * min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A)

    behaviour is the engine's policy, perhaps some versions old; proximal the trainer's own from before the first update
    on this batch. With both the same this is PPO.

    The factor is a plain importance weight. Bounding it instead means `ppo_clip` against the proximal policy, times one
    of `corrections`' factors: truncated importance sampling with the trainer's own log-probabilities *is* decoupled PPO
    with a capped factor.

    Returns the loss of each token and whether the clip cut its gradient (1.0 or 0.0), both 0 where masked.

    Shapes: all [B, T]; log-probabilities in nats.
    """
    factors_BT = importance_weights(proximal_logprobs_BT, behaviour_logprobs_BT, mask_BT)
    log_ratio_BT = keep(logprobs_BT - proximal_logprobs_BT, mask_BT)
    loss_BT, clipped_BT = ppo_clip(
        log_ratio_BT, torch.zeros_like(log_ratio_BT), keep(advantages_BT, mask_BT), clip_low, clip_high
    )
    return factors_BT * loss_BT, clipped_BT
