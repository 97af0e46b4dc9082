"""A specification in Markdown: its sections, and which of them speak to a prompt.

passages = divided(sections(text), count, room)     every section, or parts of one that is longer than the room
Bm25([passage.text for passage in passages]).scores("May I …?")
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rlpipe.data.records import DataError

Count = Callable[[str], int]
"""Tokens of a text."""

_HEADING = re.compile(r"(#{1,6})\s+(.+?)(?:\s+\{#([\w.-]+)[^}]*\})?\s*#*$")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")


@dataclass(frozen=True, slots=True)
class Section:
    """What stands below a heading, up to the next one of any level."""

    headings: tuple[str, ...]
    """From the top level down to its own."""
    anchors: tuple[str, ...]
    """Of the same headings: `{#anchor}`, or the heading as GitHub makes an anchor of it."""
    body: str

    @property
    def title(self) -> str:
        return " > ".join(self.headings)

    @property
    def text(self) -> str:
        """As it is shown to a model."""
        return f"# {self.title}\n\n{self.body}"

    def is_within(self, name: str) -> bool:
        """Whether `name` is the heading or anchor of it, or of one it stands below."""
        wanted = name.strip().removeprefix("#").lower()
        return wanted in {heading.lower() for heading in self.headings} | {anchor.lower() for anchor in self.anchors}


def sections(text: str) -> list[Section]:
    """Those that have words of their own, in order. What stands before the first heading belongs to none."""
    found: list[Section] = []
    above: list[tuple[int, str, str]] = []
    lines: list[str] = []

    def close() -> None:
        body = "\n".join(lines).strip()
        if above and body:
            found.append(Section(tuple(h for _, h, _ in above), tuple(a for _, _, a in above), body))
        lines.clear()

    for line, heading in _lines(text):
        if heading is None:
            lines.append(line)
            continue
        close()
        level = len(heading[1])
        above = [one for one in above if one[0] < level] + [(level, heading[2], heading[3] or _anchor(heading[2]))]
    close()
    return found


def _lines(text: str) -> Iterator[tuple[str, re.Match | None]]:
    """Each line, and the heading that it is; in fenced blocks there is none."""
    fence = ""
    for line in text.splitlines():
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence):
            fence = ""
            yield line, None
            continue
        yield line, None if fence else _HEADING.match(line)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def divided(found: Sequence[Section], count: Count, room: int) -> list[Section]:
    """The sections, one that is longer than `room` tokens as several. Raises `DataError` for a paragraph that is longer
    by itself."""
    return [part for section in found for part in _parts(section, count, room)]


def _parts(section: Section, count: Count, room: int) -> list[Section]:
    if count(section.text) <= room:
        return [section]
    parts: list[Section] = []
    for paragraph in re.split(r"\n\s*\n", section.body):
        longer = replace(parts[-1], body=f"{parts[-1].body}\n\n{paragraph}") if parts else None
        if longer and count(longer.text) <= room:
            parts[-1] = longer
            continue
        parts.append(replace(section, body=paragraph))
        if (tokens := count(parts[-1].text)) > room:
            raise DataError(
                f"a paragraph of the section `{section.title}` ({paragraph[:40]!r}…) has {tokens} tokens with its "
                f"heading, and guidance.max_tokens={room}; raise it, or divide the paragraph"
            )
    return parts


class Bm25:
    """Okapi BM25 (Robertson and Zaragoza 2009) over a few texts, with the idf of Lucene, which is never negative."""

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        counts = [Counter(words(text)) for text in texts]
        lengths = [sum(each.values()) for each in counts]
        mean = sum(lengths) / len(lengths)
        with_word = Counter(word for each in counts for word in each)
        self._idf = {w: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for w, n in with_word.items()}
        both = zip(counts, lengths, strict=True)
        self._weights = [
            {word: n * (k1 + 1) / (n + k1 * (1 - b + b * length / mean)) for word, n in each.items()}
            for each, length in both
        ]

    def scores(self, query: str) -> list[float]:
        """Of each text: sum of idf times saturated frequency over the words of the query; 0 where it shares none."""
        asked = words(query)
        return [sum(self._idf[w] * weights[w] for w in asked if w in weights) for weights in self._weights]


def words(text: str) -> list[str]:
    """In lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())
