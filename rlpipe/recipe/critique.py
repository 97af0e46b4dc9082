"""Critique and revision by a constitution (Bai et al. 2022, arXiv 2212.08073, section 3)."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from rlpipe.recipe import strict_file
from rlpipe.recipe.base import FilePath, Strict
from rlpipe.recipe.constitution import ConstitutionFile, Id, Principle, Words, read

REQUESTS_VERSION = 1
"""Of the two texts below: it counts up with every edit, and stands with every answer they led to."""
CRITIQUE_REQUEST = (
    "Look at your last answer again, critically. {principle}\n\nName what falls short, quoting the words you mean, or "
    "say that nothing does. Do not rewrite the answer yet."
)
REVISION_REQUEST = (
    "Now write the answer again. {principle}\n\nReply with the new answer alone and in full, as if it were the first: "
    "not a word about the critique, the earlier answer or this request. If nothing fell short, repeat the answer."
)

PLACE = "{principle}"


class CritiqueExample(Strict):
    """A whole round, as it should go."""

    prompt: Words
    """What was asked."""
    answer: Words
    """An answer that falls short."""
    critique: Words
    """What is wrong with it."""
    revision: Words
    """The answer rewritten."""


class CritiqueExamples(Strict):
    """What the model is shown before its first critique."""

    examples: Annotated[list[CritiqueExample], Field(min_length=1)]
    """Rounds of other conversations."""


def read_examples(file: str | Path) -> list[CritiqueExample]:
    """The examples of a file. Raises RecipeError, each problem with file, line and key."""
    what = "a file of examples is a mapping with the key `examples`"
    return strict_file.read(Path(file), CritiqueExamples, what).examples


def _readable(file: str) -> str:
    if Path(file).is_file():
        read_examples(file)
    return file


def _has_place(text: str) -> str:
    # Not stripped: on plain text, line ends and marks around it are the recipe's own.
    if PLACE not in text:
        raise ValueError(f"has no {PLACE}, where the words of the principle go")
    return text


Request = Annotated[str, AfterValidator(_has_place)]


class ConstitutionEnvironment(Strict):
    """Asks for a critique of the answer by a principle, then for a revision; the last revision is the response."""

    kind: Literal["constitution"]
    """Critique and revision by a constitution."""
    path: ConstitutionFile
    """The constitution: a YAML file of principles."""
    rounds: PositiveInt = 1
    """Critiques and revisions, each round by another principle."""
    tags: list[Id] = []
    """Only principles with one of these tags are drawn; any if empty."""
    seed: int = 0
    """Decides which principles each prompt gets, and each of its responses."""
    examples: Annotated[FilePath, AfterValidator(_readable)] | None = None
    """A YAML file of rounds that went as they should, shown with the first request; for models that were not trained
    to follow instructions."""
    critique_request: Request = CRITIQUE_REQUEST
    """What asks for a critique; `{principle}` is the principle's `critique`."""
    revision_request: Request = REVISION_REQUEST
    """What asks for a revision; `{principle}` is the principle's `revision`."""

    @property
    def max_turns(self) -> int:
        """The answer, and two turns in each round."""
        return 1 + 2 * self.rounds

    @property
    def requests_version(self) -> int | str:
        """Of the two requests; `own` where the recipe has others than those that come with the package."""
        shipped = (self.critique_request, self.revision_request) == (CRITIQUE_REQUEST, REVISION_REQUEST)
        return REQUESTS_VERSION if shipped else "own"

    @property
    def principles(self) -> list[Principle]:
        """Those that are drawn from, read from the file. Raises RecipeError, and ValueError for an unknown tag."""
        return read(self.path).about(self.tags)

    @model_validator(mode="after")
    def _enough_principles(self) -> "ConstitutionEnvironment":
        if not Path(self.path).is_file():
            return self  # told with the other files that are missing
        if self.rounds > (count := len(self.principles)):
            raise ValueError(f"rounds={self.rounds}: each has a principle of its own, and there are {count} to draw")
        return self
