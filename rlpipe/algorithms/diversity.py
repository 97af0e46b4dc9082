"""How much the answers to one prompt differ. Words, not tokens, so that models with other tokenizers compare."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import permutations

_WORD = re.compile(r"\w+|[^\w\s]")


def grams(text: str, n: int) -> list[tuple[str, ...]]:
    """All runs of n words or marks; a shorter text is one run, an empty one none."""
    words = _WORD.findall(text)
    size = min(n, len(words))
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)] if words else []


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams / all n-grams of several texts together; NaN without any. 1: nothing is said twice.

    Li et al. 2016, arXiv 1510.03055 (there over all answers of a model; it falls with their number, so that only the
    same number of answers compare).
    """
    found = [gram for text in texts for gram in grams(text, n)]
    return len(set(found)) / len(found) if found else float("nan")


def self_overlap(texts: Sequence[str], n: int) -> float:
    """How much of a text stands in another one, over all ordered pairs: its n-grams that the other has, too, each as
    often as it is there, / its n-grams. NaN for fewer than two texts with words. 1: all say the same.

    The modified precision of BLEU (Papineni et al. 2002, equation for p_n) of the texts with one another, as in
    Self-BLEU (Zhu et al. 2018, arXiv 1802.01886), of one n and without a penalty for brevity.
    """
    counted = [count for text in texts if (count := Counter(grams(text, n)))]
    shares = [(a & b).total() / a.total() for a, b in permutations(counted, 2)]
    return sum(shares) / len(shares) if shares else float("nan")
