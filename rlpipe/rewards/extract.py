"""The part of a text that counts."""

from rlpipe.data.flow import Failure, Group
from rlpipe.rewards.reward import reference


def reference_after(group: Group, column: str, mark: str | None) -> str | Failure:
    """The reference answer of the group's row; with a mark, what follows the last one in the column."""
    text = reference(group, column)
    if isinstance(text, Failure) or mark is None:
        return text
    if mark not in text:
        return Failure("unparseable_reference", f"no answer_after={mark!r} in the reference {text!r:.200}")
    return after(text, mark).strip()


def after(text: str, mark: str | None) -> str:
    """What follows the last mark; all of it if there is none."""
    return text.rpartition(mark)[2] if mark else text


def inside(text: str, tag: str) -> str | None:
    """What stands between the last `<tag>` that is closed and its `</tag>`; `None` if there is none."""
    before, closed, _ = text.rpartition(f"</{tag}>")
    _, opened, content = before.rpartition(f"<{tag}>")
    return content if opened and closed else None


def program(text: str) -> str:
    """The last fenced block that is marked as Python, else the last fenced block, else all of it."""
    blocks = fenced(text)
    marked = [block for language, block in blocks if language.lower() in ("python", "python3", "py")]
    return marked[-1] if marked else blocks[-1][1] if blocks else text


def fenced(text: str) -> list[tuple[str, str]]:
    """(what stands behind the opening fence, content) of each closed block."""
    found, language, lines = [], None, []
    for line in text.splitlines():
        if language is None and line.lstrip().startswith("```"):
            language, lines = line.strip("` \t"), []
        elif language is not None and line.strip() == "```":
            found.append((language, "\n".join(lines) + "\n"))
            language = None
        else:
            lines.append(line)
    return found
