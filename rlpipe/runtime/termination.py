"""SIGTERM, by which Ray's jobs, Slurm, Kubernetes and `kill` ask a process to end, means what Ctrl-C means."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """In the block, the first SIGTERM raises KeyboardInterrupt in the main thread; further ones change nothing, so that
    what is to be written before the end gets written. Does nothing in another thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def termination_kept() -> Iterator[None]:
    """What SIGTERM does is the same after the block as before: `ray.init` sets a handler of its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGTERM, before)
