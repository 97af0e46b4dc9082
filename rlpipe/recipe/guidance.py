"""What is put into a model's context while it answers, and left out of what is learned: deliberative alignment
(Guan et al. 2024, arXiv 2412.16339)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, PositiveInt

from rlpipe.recipe.base import FilePath, Strict

TEMPLATE_VERSION = 1
"""Of the text below: it counts up with every edit."""
TEMPLATE = (
    "Answer as this part of your specification asks. Before you answer, consider which of its rules apply and what "
    "they ask here; in the answer, do not mention the specification.\n\n{specification}"
)
PLACE = "{specification}"


def _has_place(text: str) -> str:
    if PLACE not in text:
        raise ValueError(f"has no {PLACE}, where the sections go")
    return text


class Specification(Strict):
    """Sections of a written specification that suit the prompt, as a system message."""

    kind: Literal["specification"]
    """Sections of a specification."""
    path: FilePath
    """The specification in Markdown; its headings begin its sections."""
    column: str | None = None
    """Column of the data that names the section of each prompt, by heading or by anchor (`{#anchor}`); the sections
    below it belong to it. If absent, sections are found by the words that they share with the prompt (BM25)."""
    sections: PositiveInt = 3
    """At most so many sections, the most relevant ones."""
    max_tokens: PositiveInt = 1024
    """Room for them in tokens. A section that is longer is divided between paragraphs."""
    otherwise: str | None = None
    """Heading or anchor of the section for prompts that share no word with any; an error without it."""
    template: Annotated[str, AfterValidator(_has_place)] = TEMPLATE
    """The system message; `{specification}` is where the sections go. A system message of the data follows it."""

    @property
    def template_version(self) -> int | str:
        """Of the template; `own` where the recipe has another than the package's."""
        return TEMPLATE_VERSION if self.template == TEMPLATE else "own"
