"""A constitution: principles by which answers are criticised, rewritten and compared; and which one a prompt gets.

A principle is drawn by weighted rendezvous hashing (Thaler and Ravishankar 1998, "Using name-based mappings to increase
hit rates"): every principle gets a number from a hash of seed, key and its own id, and the highest one wins. So a
principle that is added wins some keys and leaves all others as they were, one that is removed gives up its own and no
others, and the order of the file means nothing.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from rlpipe.recipe import strict_file
from rlpipe.recipe.base import FilePath, Strict

WHAT = "a constitution is a mapping with the keys `name`, `version` and `principles`"


def _says_something(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; say it in words")
    return text.strip()


def _plain_id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise ValueError(f"`{text}` is no id; expected letters, digits, `-`, `_`, `.`, and no mark first")
    return text


Words = Annotated[str, AfterValidator(_says_something)]
Id = Annotated[str, AfterValidator(_plain_id)]


class Principle(Strict):
    """One thing that is asked of answers."""

    id: Id
    """Stands with every label that the principle led to, and decides which prompts get it: leave it when you mend the
    words, and give a principle that means something else another."""
    critique: Words
    """What to look for in an answer."""
    revision: Words
    """How to rewrite an answer that falls short."""
    preference: Words
    """Which of two answers is the better one."""
    weight: PositiveFloat = 1.0
    """How often it is drawn, beside the others."""
    tags: list[Id] = []
    """What it is about, for recipes that want some of the principles only."""


class Constitution(Strict):
    """Principles under a name."""

    name: Id
    """Stands with every label that it led to."""
    version: PositiveInt | Id
    """Stands with every label, too: count it up with every edit."""
    principles: Annotated[list[Principle], Field(min_length=1)]
    """In any order."""

    @model_validator(mode="after")
    def _told_apart(self) -> "Constitution":
        first: dict[str, int] = {}
        for i, principle in enumerate(self.principles):
            if (before := first.setdefault(principle.id, i)) != i:
                raise ValueError(f"principles.{i}.id={principle.id} is the id of principles.{before}, too; change one")
        return self

    @property
    def digest(self) -> str:
        """Of the content, in 16 hexadecimal digits: comments and order of the file leave it as it is."""
        content = self.model_dump()
        content["principles"].sort(key=lambda principle: principle["id"])
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()

    @property
    def origin(self) -> dict[str, str | int]:
        """For the provenance of labels."""
        return {"constitution": self.name, "version": self.version, "digest": self.digest}

    def about(self, tags: Sequence[str]) -> list[Principle]:
        """The principles that have one of these tags; all of them where no tag is given. Raises ValueError for a tag
        that none has."""
        known = Counter(tag for principle in self.principles for tag in principle.tags)
        for tag in tags:
            if tag not in known:
                has = f"its tags are {', '.join(sorted(known))}" if known else "none of them has a tag"
                raise ValueError(f"no principle of the constitution `{self.name}` has the tag `{tag}`; {has}")
        return [principle for principle in self.principles if not tags or set(tags) & set(principle.tags)]


def read(file: str | Path) -> Constitution:
    """The constitution of a file. Raises RecipeError, each problem with file, line and key."""
    return strict_file.read(Path(file), Constitution, WHAT)


def _readable(file: str) -> str:
    """Raises RecipeError for a constitution that is here and wrong; one that is not is told with other lost files."""
    if Path(file).is_file():
        read(file)
    return file


ConstitutionFile = Annotated[FilePath, AfterValidator(_readable)]
"""A key of a recipe that names a constitution: mistakes in it are mistakes of the recipe."""


def draw(principles: Sequence[Principle], key: str, seed: int) -> Principle:
    """The principle for `key` (a prompt): each with a probability in proportion to its weight, over seeds and keys."""
    return ranked(principles, key, seed)[0]


def ranked(principles: Sequence[Principle], key: str, seed: int) -> list[Principle]:
    """All of them, as if drawn one after the other without replacement (Efraimidis and Spirakis 2006): the first is
    what `draw` gives, the second what it would give without the first, and so on."""
    return sorted(principles, key=lambda principle: (_score(principle, key, seed), principle.id), reverse=True)


def _score(principle: Principle, key: str, seed: int) -> float:
    """-w / ln(h) for h between 0 and 1, which of all principles the hash of this one makes."""
    digest = hashlib.blake2b(json.dumps([seed, principle.id, key]).encode(), digest_size=8).digest()
    share = ((int.from_bytes(digest, "big") >> 11) + 0.5) / 2**53
    return -principle.weight / math.log(share)
