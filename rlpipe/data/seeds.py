"""The seed of every sample, independent of which engine serves it and when."""

import hashlib


def sample_seed(run_seed: int, prompt_id: str, epoch: int, sample_index: int) -> int:
    """A 63-bit seed (vLLM takes a signed 64-bit one), the same in every process and Python version."""
    key = f"{run_seed}/{prompt_id}/{epoch}/{sample_index}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def turn_seed(seed: int, turn: int) -> int:
    """The seed of a sample's turn, from the sample's own: turn 0 has that itself, so that a single turn is none."""
    return seed if turn == 0 else _derived(seed, f"turn/{turn}")


def environment_seed(seed: int) -> int:
    """The seed of the environment that a sample talks to."""
    return _derived(seed, "environment")


def _derived(seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "big") >> 1
