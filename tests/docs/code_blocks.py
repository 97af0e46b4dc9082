"""Code blocks and commands of a Markdown page.

After the language, a fence may say more; GitHub does not show it:

    ```bash exit=2 says="…" types="c"    how the last command ends, what its output contains, what is typed on its stdin
    ```text output                       what the command before printed; `...` stands for anything on a line
    ```yaml title="my.yaml"              a file that later commands use; also with python
    ```yaml extends=arithmetic/sft       a fragment, checked on top of this recipe (arithmetic/grpo if it does not say)
    ```yaml … mistakes                   a recipe that is wrong on purpose
    ```diff                              a change of rlpipe's own code, in a copy
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block and the line it begins on."""

    language: str
    said: dict[str, str]
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """One command of a bash block."""

    text: str
    line: int

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found[1], _said(found[2]), found[3], text.count("\n", 0, found.start()) + 1)
        for found in FENCE.finditer(text)
    ]


def commands(block: Block) -> list[Command]:
    """The commands of a bash block, without comments; `\\` at the end of a line goes on in the next."""
    found, pending = [], ""
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        text = shlex.join(shlex.split(pending, comments=True))
        if text:
            found.append(Command(text, number))
        pending = ""
    return found


def inline_commands(page: Path) -> list[Command]:
    """`rlpipe …` in running text, where it is written out in full."""
    text = page.read_text(encoding="utf-8")
    outside = FENCE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    spans = re.finditer(r"`(rlpipe [^`]*)`", outside)
    return [
        Command(" ".join(span[1].split()), outside.count("\n", 0, span.start()) + 1)
        for span in spans
        if "…" not in span[1]
    ]


def _said(info: str) -> dict[str, str]:
    pairs = (word.partition("=") for word in shlex.split(info))
    return {key: value for key, _, value in pairs}
