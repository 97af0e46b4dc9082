"""What a revision must not be: a word about the critique, or the request once more. No judge of quality."""

import re

ABOUT_ITSELF = re.compile(
    r"\b(critique|criticism|revis(ed|ion)|rewritten|(previous|earlier|first|last|my|original) (answer|response))\b",
    re.IGNORECASE,
)


def clean(completions, conversations, **columns):
    """1 for a revision that can stand as an answer by itself, 0 for one that talks about the round it came from."""
    return [float(_stands_alone(said, turns)) for said, turns in zip(completions, conversations, strict=True)]


def _stands_alone(said, turns):
    asked = {turn["content"].strip() for turn in turns if turn["role"] != "assistant"}
    return not ABOUT_ITSELF.search(said) and said.strip() not in asked
