"""What a response that is too long costs."""

import torch


def soft_overlong_penalty(lengths_B: torch.Tensor, max_length: int, buffer: int) -> torch.Tensor:
    """DAPO's soft overlong punishment, to be added to the reward (Yu et al. 2025, arXiv 2503.14476, eq. 13).

        0                                                length <= max_length - buffer
        (max_length - buffer - length) / buffer          in the buffer
        -1                                               length > max_length

    A buffer of 0 has no middle part.

    Shapes: lengths_B [B] in response tokens; result [B] in reward units, float32.
    """
    excess_B = (lengths_B - (max_length - buffer)).to(torch.float32)
    return -excess_B.clamp(0, 1) if buffer == 0 else -(excess_B / buffer).clamp(0, 1)


def truncation_penalty(rewards_B: torch.Tensor, truncated_B: torch.Tensor, penalty: float) -> torch.Tensor:
    """Rewards less a fixed `penalty` for responses that the length limit cut off.

        r_i - penalty * [i was cut]

    Shapes: [B]; penalty at least 0, in reward units.
    """
    return rewards_B - penalty * truncated_B.to(rewards_B.dtype)


def without_truncated(valid_B: torch.Tensor, truncated_B: torch.Tensor) -> torch.Tensor:
    """DAPO's overlong filtering (arXiv 2503.14476, section 3.4): responses that the length limit cut off are not
    trained on. Here they count as if their reward had failed: out of the loss, and out of the group's baseline.

    Shapes: all [B], bool.
    """
    return valid_B.bool() & ~truncated_B.bool()
