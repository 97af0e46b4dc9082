"""Tracebacks for people: the line that failed at the end, and on the way to it no frames of what only carries calls
around (Ray, typer, our own runtime). Imports nothing heavy."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rlpipe.recipe.secrets import hide

_LIBRARIES = ("ray", "typer", "click")
_CARRIERS = (
    ("rlpipe", "runtime"), ("rlpipe", "cli"), ("rlpipe", "__main__"), ("rlpipe", "pipelines", "run.py"),
    ("rlpipe", "pipelines", "online", "gang.py"), ("rlpipe", "rewards", "killable.py"),
    ("rlpipe", "rewards", "called.py"), ("rlpipe", "rewards", "child.py"), ("rlpipe", "rewards", "lane.py"),
)  # fmt: skip
"""Beginnings of paths, from a folder on."""
_STANDARD = ("contextlib.py", "runpy.py")


def clean(error: BaseException) -> str:
    """The traceback of `error` and of what it came from, as Python prints it, without the frames of carriers. What
    nothing would be left of stays whole. Known secrets are not in it."""
    found = traceback.TracebackException.from_exception(error)
    for one in _chain(found):
        kept = list(_kept(one.stack))
        one.stack = traceback.StackSummary.from_list(kept or one.stack)
    return hide("".join(found.format()).rstrip())


@contextmanager
def kept(place: Callable[[], str]) -> Iterator[None]:
    """What is raised in the block takes its traceback along, as text, and the `place` of it: on the way to another
    process an exception loses both."""
    try:
        yield
    except Exception as error:
        error.rlpipe_kept = f"{place()}.\n{clean(error)}"
        raise


def kept_of(error: BaseException) -> str:
    """What `kept` has put down; empty for an error that did not take it along."""
    return getattr(error, "rlpipe_kept", "")


def attach(error: BaseException, text: str) -> None:
    """Let `told` say this of an error, in the place of its traceback: one that comes from another process has none."""
    error.rlpipe_told = text


def told(error: BaseException) -> str:
    """What to show of an error that does not explain itself: where it was raised."""
    return getattr(error, "rlpipe_told", "") or clean(error)


@contextmanager
def shown_cleanly() -> Iterator[None]:
    """What the block raises and nobody catches is shown as `told` has it. (A debugger that waits for it gets it as it
    is.)"""
    try:
        yield
    except Exception:
        sys.excepthook = _hook  # not before: torch.distributed puts one of its own there
        raise


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(hide(told(error.with_traceback(trace))), file=sys.stderr)


def _chain(found: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    following = [found]
    while following:
        one = following.pop()
        yield one
        following += [each for each in (one.__cause__, one.__context__) if each is not None]


def _kept(stack: traceback.StackSummary) -> Iterator[traceback.FrameSummary]:
    """Without carriers. An error that is raised on has its function twice, around a carrier: then the later one."""
    frames = list(stack)
    for i, frame in enumerate(frames):
        following = next((other for other in frames[i + 1 :] if not _carries(other)), frame)
        around_carrier = i + 1 < len(frames) and _carries(frames[i + 1])
        again = around_carrier and (following.filename, following.name) == (frame.filename, frame.name)
        if not _carries(frame) and not (again and following is not frame):
            yield frame


def _carries(frame: traceback.FrameSummary) -> bool:
    parts = frame.filename.split(os.sep)
    if parts[-1] in _STANDARD and "site-packages" not in parts:
        return True
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1] in _LIBRARIES
    return any(_begins(parts[i:], carrier) for i, part in enumerate(parts) if part == "rlpipe" for carrier in _CARRIERS)


def _begins(parts: list[str], carrier: tuple[str, ...]) -> bool:
    *folders, last = carrier
    return parts[: len(folders)] == folders and "".join(parts[len(folders) : len(folders) + 1]).startswith(last)
