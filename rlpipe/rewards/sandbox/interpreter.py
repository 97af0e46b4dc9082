"""The files of this Python that a program needs, and no others: binary, standard library, shared libraries."""

import functools
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

BINARY = os.path.realpath(sys.executable)
LEFT_OUT = ("_tkinter", "_curses", "readline")
"""Extension modules whose libraries are many and that nobody needs without a screen."""


class Interpreter(NamedTuple):
    """Paths as they are on this machine; the sandbox has them in the same places."""

    binary: str
    library: str
    hidden: tuple[str, ...]
    """Folders of installed packages inside the standard library's."""
    shared: tuple[str, ...]
    """Shared libraries and the loader."""


@functools.cache
def find() -> Interpreter:
    """Raises `OSError` or `subprocess.SubprocessError` if `ldd` cannot tell which libraries it loads."""
    library = sysconfig.get_path("stdlib")
    hidden = [path for name in ("site-packages", "dist-packages") if (path := Path(library, name)).is_dir()]
    return Interpreter(BINARY, library, tuple(map(str, hidden)), _shared(library))


def _shared(library: str) -> tuple[str, ...]:
    modules = [path for path in Path(library, "lib-dynload").glob("*.so") if not path.name.startswith(LEFT_OUT)]
    listing = subprocess.run(["ldd", BINARY, *modules], capture_output=True, text=True, timeout=30).stdout
    return tuple(sorted(set(re.findall(r"(/\S+) \(0x", listing))))
