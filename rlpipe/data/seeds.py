"""The seed of every sample, independent of which engine serves it and when."""

import hashlib


def sample_seed(run_seed: int, prompt_id: str, epoch: int, sample_index: int) -> int:
    """A 63-bit seed (vLLM takes a signed 64-bit one), the same in every process and Python version."""
    key = f"{run_seed}/{prompt_id}/{epoch}/{sample_index}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
