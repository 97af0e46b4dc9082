"""Starts sandboxes, in a process of its own that takes in the orphans which they leave.

bwrap ends before the first process of its namespace is reaped. Without this that would be left to the machine's process
1, which in a container may be a program that never looks; and `isolation: none` would leave what a program started.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable

from rlpipe.rewards.sandbox.sandbox import Isolation, Job, Limits, Run, Sandbox, Unavailable

PR_SET_CHILD_SUBREAPER = 36
OTHERWISE = "On a machine that may come to harm, `isolation: none` in the recipe runs them unprotected"


def load(limits: tuple[int, ...], isolation: Isolation) -> Callable[[tuple[Job, float]], Run]:
    """The function that runs (job, seconds). Raises `Unavailable`."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    sandbox = Sandbox(Limits(*limits), isolation)
    try:
        sandbox.check()
    except Unavailable as error:
        raise Unavailable(f"programs cannot be isolated: {error}. {OTHERWISE}") from error
    reap()

    def run(request: tuple[Job, float]) -> Run:
        try:
            return sandbox.run(*request)
        finally:
            reap()

    return run


def reap() -> None:
    """End every child and wait for it; a namespace's first process is gone only after all others in it."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for child in children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            os.waitpid(-1, 0)


def children() -> list[int]:
    found = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as file:
            found += map(int, file.read().split())
    return found
