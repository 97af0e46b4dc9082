"""Texts that say nearly the same: MinHash over word shingles (Broder 1997, "On the resemblance and containment of
documents"), by `datasketch`."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

WORDS = 3
"""Of a shingle."""
RESEMBLANCE = 0.8
"""Jaccard similarity of the shingles from which two texts are nearly the same."""
_PERMUTATIONS = 128


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int]]:
    """(later, earlier): each text that resembles an earlier one, with the first such one."""
    index, found = _index(), []
    for i, text in enumerate(texts):
        sketch = _sketch(text)
        if earlier := index.query(sketch):
            found.append((i, min(earlier)))
        index.insert(i, sketch)
    return found


def overlaps(texts: Sequence[str], others: Sequence[str]) -> list[tuple[int, int]]:
    """(text, other): each text that resembles one of the others, with the first such one."""
    index = _index()
    for i, other in enumerate(others):
        index.insert(i, _sketch(other))
    pairs = [(i, index.query(_sketch(text))) for i, text in enumerate(texts)]
    return [(i, min(like)) for i, like in pairs if like]


def _index() -> "MinHashLSH":
    from datasketch import MinHashLSH

    return MinHashLSH(RESEMBLANCE, _PERMUTATIONS)


def _sketch(text: str) -> "MinHash":
    from datasketch import MinHash

    sketch = MinHash(_PERMUTATIONS)
    sketch.update_batch([shingle.encode() for shingle in shingles(text)])
    return sketch


def shingles(text: str) -> set[str]:
    """Runs of so many words, whatever stands between them; a shorter text is one. Numbers and signs count as words:
    sums differ by nothing else."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    runs = [words[i : i + WORDS] for i in range(max(1, len(words) - WORDS + 1))]
    return {" ".join(run) for run in runs}
