"""The token sequences on which trainer and engines are compared, chosen once per run."""

from collections.abc import Sequence
from itertools import islice

import numpy as np

from rlpipe.data.flow import Tokens


def choose_probes(
    prompts: Sequence[Tokens],
    vocab_size: int,
    longest: int,
    prompt_count: int = 4,
    sweep_count: int = 2,
    length: int = 32,
) -> list[Tokens]:
    """A few real prompts, where the policy matters, and sweeps over the vocabulary, which reach embeddings and output
    rows that prompts never touch.

    Each sequence has 2 to `length` tokens and stays below `longest`, the engine's limit for prompt plus response.
    """
    size = min(length, longest - 1)
    real = [tokens[:size] for tokens in islice((t for t in prompts if len(t) > 1), prompt_count)]
    # A fixed, scrambled order of the whole vocabulary, cut into sequences.
    order = np.random.default_rng(0).permutation(vocab_size).astype(np.int32)
    return real + [order.take(range(i * size, (i + 1) * size), mode="wrap") for i in range(sweep_count)]
