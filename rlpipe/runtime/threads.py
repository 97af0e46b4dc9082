"""How many CPU threads a process of a role computes with, and where they all stand."""

import os
import sys
import threading
import traceback


def threads_of(wanted: int, sharing: int) -> int:
    """`wanted`, or for 0 this process's part of its node's cores, which `sharing` processes of the role share."""
    return wanted or max(1, (os.cpu_count() or 1) // sharing)


def set_threads(wanted: int, sharing: int) -> None:
    """Makes the calling thread compute with that many, and what is started or asks the environment later."""
    import torch

    threads = threads_of(wanted, sharing)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # accelerate goes by it, and where it is absent takes all cores


def stacks() -> str:
    """Where every thread of this process stands now, for the report of a missed deadline."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames().items()
    return "\n".join(f"-- {names.get(i, i)}\n" + "".join(traceback.format_stack(f)) for i, f in frames)
