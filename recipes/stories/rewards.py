"""Rewards that are computed from a story's text. The signature is TRL's."""

import re

HAPPY_WORDS = frozenset(
    "beautiful best brave bright celebrate cheerful enjoy enjoyed excited fun funny glad good great happily happy hug "
    "hugged joy kind laugh laughed liked love loved lovely nice play played proud safe share shared smile smiled sunny "
    "sweet thank thanked warm wonderful".split()
)
ENOUGH = 5
"""Different happy words that earn the full reward."""


def happy(completions: list[str], **columns) -> list[float]:
    """How happy a story is: its different happy words, as a share of ENOUGH, at most 1. Repeating one earns nothing."""
    return [min(1.0, len(HAPPY_WORDS & set(_words(text))) / ENOUGH) for text in completions]


def variety(completions: list[str], **columns) -> list[float | None]:
    """Different words as a share of all words: what a policy that overdoes it would lose. None for an empty story."""
    return [len(set(words)) / len(words) if (words := _words(text)) else None for text in completions]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())
