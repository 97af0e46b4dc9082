"""A command on a terminal, with somebody who reads and types."""

import os
import pty
import re
import select
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from warm import Warm

PROMPT = "(Pdb) "


class Terminal:
    """A pseudo-terminal on which `what` runs (as for `Warm.on_terminal`)."""

    def __init__(self, warm: Warm, what: dict, folder: Path) -> None:
        self._ours, self._theirs = pty.openpty()
        self.shown = ""
        self._read = 0
        self._code = ThreadPoolExecutor(1).submit(warm.on_terminal, os.ttyname(self._theirs), what, folder)

    def sees(self, text: str, seconds: float = 60.0) -> str:
        """What was shown since the last call, up to `text`, for which it waits."""
        until = time.monotonic() + seconds
        while (found := self.shown.find(text, self._read)) < 0:
            assert time.monotonic() < until and not self._code.done(), f"no {text!r} in:\n{self.shown}"
            self._take(0.2)
        began, self._read = self._read, found + len(text)
        return self.shown[began : self._read]

    def types(self, line: str) -> None:
        os.write(self._ours, f"{line}\n".encode())

    def answers(self, line: str) -> str:
        """What is shown after typing this at the debugger's prompt, until the next prompt."""
        self.types(line)
        return self.sees(PROMPT).removesuffix(PROMPT)

    def is_still(self, seconds: float) -> bool:
        """Whether nothing is shown for so long, behind what was seen last."""
        return not self._take(seconds) and self._read == len(self.shown)

    def ends(self, seconds: float = 60.0) -> int:
        """Its exit code."""
        until = time.monotonic() + seconds
        while not self._code.done():
            assert time.monotonic() < until, self.shown
            self._take(0.1)
        while self._take(0.0):
            pass
        os.close(self._ours)
        os.close(self._theirs)
        return self._code.result()

    def _take(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        text = os.read(self._ours, 65536).decode(errors="replace").replace("\r\n", "\n")
        self.shown += re.sub(r"\x1b\[\?2004[hl]\r?", "", text)  # readline's: text that comes is pasted, or not
        return True
