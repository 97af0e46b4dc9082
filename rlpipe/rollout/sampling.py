"""Drawing tokens so that a sample depends on its own seed and nothing else.

Axis names: R rows (samples) of a batch, V vocabulary, K stop tokens.
"""

import torch

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the odd constant of SplitMix64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def as_int64(seed: int) -> int:
    """Any integer, folded into the range of a torch int64."""
    return (seed + 2**63) % 2**64 - 2**63


def uniform(seeds_R: torch.Tensor, position: int) -> torch.Tensor:
    """One number in [0, 1) per row, a hash of (seed, position): SplitMix64 at counter `position`. float64.

    A counter instead of a generator per sample: nothing to keep, nothing to advance, all rows at once.
    """
    x = seeds_R + as_int64((position + 1) * _GOLDEN)
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    x = x ^ _shift_right(x, 31)
    return _shift_right(x, 16).to(torch.float64) / 2**48


def draw(
    logits_RV: torch.Tensor, temperatures_R: torch.Tensor, seeds_R: torch.Tensor, position: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of every row and its log-probability in the distribution it was drawn from.

    softmax(logits / temperature), inverted at `uniform(seeds, position)`. Temperature 0 takes the likeliest token; its
    log-probability is that of temperature 1.
    """
    greedy_R = temperatures_R == 0
    divisor_R = torch.where(greedy_R, 1.0, temperatures_R)
    logprobs_RV = (logits_RV.float() / divisor_R[:, None]).log_softmax(-1)
    # In float64, because over a large vocabulary a float32 sum loses the rare tokens.
    cumulative_RV = logprobs_RV.exp().cumsum(-1, dtype=torch.float64)
    level_R = uniform(seeds_R, position) * cumulative_RV[:, -1]
    # right=True: the first token whose cumulative probability exceeds the level, never one of probability 0.
    tokens_R1 = torch.searchsorted(cumulative_RV, level_R[:, None], right=True)
    tokens_R1 = torch.where(greedy_R[:, None], logits_RV.argmax(-1, keepdim=True), tokens_R1)
    return tokens_R1[:, 0], logprobs_RV.gather(-1, tokens_R1)[:, 0]


def is_stop(tokens_R: torch.Tensor, stops_RK: torch.Tensor) -> torch.Tensor:
    """Which rows drew one of their stop tokens; rows with fewer than K are filled with -1."""
    return (tokens_R[:, None] == stops_RK).any(-1)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift; torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
