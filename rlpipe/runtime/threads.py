"""How many CPU threads a process of a role computes with."""

import os


def threads_of(wanted: int, sharing: int) -> int:
    """`wanted`, or for 0 this process's part of its node's cores, which `sharing` processes of the role share."""
    return wanted or max(1, (os.cpu_count() or 1) // sharing)


def set_threads(wanted: int, sharing: int) -> None:
    """Makes the calling thread compute with that many, and what is started or asks the environment later."""
    import torch

    threads = threads_of(wanted, sharing)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # accelerate goes by it, and where it is absent takes all cores
