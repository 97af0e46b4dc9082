"""The other side of `killable.py`: a fresh interpreter that loads one function and answers calls of it.

Run as `python -m rlpipe.rewards.child FD`, FD being its end of a socket pair. It imports neither numpy nor torch of its
own accord, so that it starts at the speed of what it loads. Messages, each a pickled tuple:

    to the child     (factory, options)    once: `package.module:function` and its keyword arguments
                     (request, seconds)    a call
    to the parent    ("ready", None) | ("unusable", why)
                     ("value", result) | ("raised", why)
"""

import bdb
import importlib
import os
import queue
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

GRACE_SECONDS = 30.0


def load(factory: str, options: dict[str, Any]) -> Callable[[Any], Any]:
    """The callable that `factory` builds from `options`."""
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)(**options)


def answer(
    function: Callable[[Any], Any], request: Any, show: Callable[[BaseException], None] = lambda _: None
) -> tuple[str, Any]:
    """Call it; an exception becomes its description, and is shown. Quitting the debugger is no fault of the reward."""
    try:
        return "value", function(request)
    except bdb.BdbQuit:
        raise
    except (Exception, SystemExit) as error:
        show(error)
        return "raised", describe(error)


def describe(error: BaseException) -> str:
    """Type, message and the deepest line of code that is not a library's or ours."""
    place = place_of(error)
    return f"{type(error).__name__}: {error!s:.500}" + (f" ({place})" if place else "")


def place_of(error: BaseException) -> str:
    """The deepest line of code that is not a library's or ours, as `file.py:3`; empty without one."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not any(part in frame.filename for part in _NOT_THE_USERS)]
    return f"{users[-1].filename}:{users[-1].lineno}" if users else ""


_NOT_THE_USERS = (
    os.sep + os.path.join("rlpipe", "rewards") + os.sep,
    "site-packages",
    sysconfig.get_path("stdlib") + os.sep,
    "<frozen ",
)
"""Parts of the names of files: ours, libraries' and Python's own."""


def _read(connection: Connection, inbox: queue.SimpleQueue) -> None:
    """Feed the main thread. The parent's end closing, however it died, ends this process."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)


def _explain_breakpoints() -> None:
    """Here `breakpoint()` is an error that says where it works. A debugger that was asked for in PYTHONBREAKPOINT, and
    may need no terminal, still gets its way."""
    own = os.environ.get("PYTHONBREAKPOINT", "")
    if own and not own.startswith("ray."):  # Ray sets one for its drivers, which their children inherit
        return

    def hook(*_: object, **__: object) -> None:
        raise RuntimeError(
            "breakpoint() needs a terminal, and this process has none; with `rlpipe run RECIPE --debug` this code runs "
            "in the process that has"
        )

    sys.breakpointhook = hook


def main(fd: int) -> None:
    connection: Connection = Connection(fd)
    inbox: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    factory, options = inbox.get()
    _explain_breakpoints()
    try:
        function = load(factory, options)
    except (Exception, SystemExit) as error:
        connection.send(("unusable", describe(error)))
        return
    connection.send(("ready", None))
    while True:
        request, seconds = inbox.get()
        # Should the parent die while this process hangs inside C code, the kernel still ends it.
        signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_SECONDS)
        connection.send(answer(function, request))
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
