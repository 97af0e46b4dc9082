"""Prompts with the part of a specification that speaks to them in context: deliberative alignment (Guan et al. 2024,
arXiv 2412.16339). The model answers with it; what is learned from is the plain prompt and the answer."""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlpipe.data.chat import Message, prompt_context
from rlpipe.data.flow import Prompt
from rlpipe.data.records import DataError, Format, Record, Records
from rlpipe.data.specification import Bm25, Section, divided, sections
from rlpipe.recipe.guidance import PLACE, Specification

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = "prompt_without_guidance"
"""Column with the prompt as the data has it."""
SHOWN = "specification"
"""Column with the sections that were in context, for a judge."""


def asked_of(prompt: Prompt) -> str | list[Message]:
    """What a prompt asks, without guidance: its text, or its messages."""
    return prompt.columns.get(PLAIN) or prompt.messages or prompt.text


def guided(records: Records, settings: Specification, tokenizer: "PreTrainedTokenizerBase") -> Records:
    """The records with sections of the specification in a system message, `PLAIN` and `SHOWN` beside it. Raises
    `DataError` for a specification that cannot be used, and for a row that none of it speaks to."""
    if records.format in (Format.MESSAGES, Format.TEXT) or not records.chat:
        raise DataError(
            "guidance puts a system message before a prompt: it needs records with a prompt, and data.chat=true."
        )
    library = Library(settings, tokenizer)
    train, heldout = (
        [_guided(row, records, library, settings) for row in part] for part in (records.train, records.heldout)
    )
    return replace(records, train=train, heldout=heldout, system=None)


def shown_to_judges(records: Records, settings: Specification, tokenizer: "PreTrainedTokenizerBase") -> Records:
    """The records with the sections that suit them in `SHOWN` alone: a judge sees them, and who answers does not.
    Raises `DataError` as `guided` does."""
    for row in (*records.train, *records.heldout):
        _check_free(row, {SHOWN})
    library = Library(settings, tokenizer)
    train, heldout = (
        [Record(row.fields | {SHOWN: _text_for(row, records, library, settings)}, row.origin) for row in part]
        for part in (records.train, records.heldout)
    )
    return replace(records, train=train, heldout=heldout)


class Library:
    """The passages of a specification, to be asked for those that suit a prompt."""

    def __init__(self, settings: Specification, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raises `DataError` for a file without sections, and for a paragraph that is too long."""
        self._settings = settings
        try:
            found = sections(Path(settings.path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"guidance.path: {settings.path} cannot be read as text: {error}") from error
        if not found:
            raise DataError(f"guidance.path: {settings.path} has no section: no heading (`# …`) with text below it.")
        self._count = lambda text: len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        self.passages = divided(found, self._count, settings.max_tokens)
        self._search = Bm25([passage.text for passage in self.passages])
        if settings.otherwise is not None:
            self._within(settings.otherwise, "guidance.otherwise")

    def passages_for(self, question: str, name: str | None, origin: str) -> list[Section]:
        """The most relevant passages that fit, in the order of the specification; only those of the section `name`,
        where there is one. Raises `DataError`, naming the row, where there is none."""
        scores = self._search.scores(question)
        candidates = self._within(name, origin) if name else [i for i, score in enumerate(scores) if score > 0]
        if not candidates and self._settings.otherwise is None:
            raise DataError(
                f"{origin}: the prompt shares no word with any section of {self._settings.path}. Name its section in a "
                "column (guidance.column), or give guidance.otherwise=HEADING for such prompts."
            )
        candidates = candidates or self._within(self._settings.otherwise, "guidance.otherwise")
        chosen = self._fitting(sorted(candidates, key=lambda i: -scores[i]))
        return [self.passages[i] for i in sorted(chosen)]

    def _fitting(self, ranking: list[int]) -> list[int]:
        """The first ones, up to the number and the tokens that may be."""
        chosen, left = [], self._settings.max_tokens
        for i in ranking:
            tokens = self._count(self.passages[i].text)
            if len(chosen) < self._settings.sections and tokens <= left:
                chosen.append(i)
                left -= tokens
        return chosen

    def _within(self, name: str, where: str) -> list[int]:
        found = [i for i, passage in enumerate(self.passages) if passage.is_within(name)]
        if not found:
            known = {heading for passage in self.passages for heading in (*passage.headings, *passage.anchors)}
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"its headings begin with `{self.passages[0].title}`."
            raise DataError(f"{where}: {self._settings.path} has no section `{name}`; {hint}")
        return found


def _guided(row: Record, records: Records, library: Library, settings: Specification) -> Record:
    _check_free(row, {PLAIN, SHOWN})
    text = _text_for(row, records, library, settings)
    prompt = _with(settings.template.replace(PLACE, text), prompt_context(row, records))
    return Record(row.fields | {"prompt": prompt, PLAIN: row.fields["prompt"], SHOWN: text}, row.origin)


def _check_free(row: Record, columns: set[str]) -> None:
    if taken := columns & row.fields.keys():
        raise DataError(f"{row.origin}: guidance makes a column `{min(taken)}`, and the record has one; rename it.")


def _text_for(row: Record, records: Records, library: Library, settings: Specification) -> str:
    context = prompt_context(row, records)
    messages = [{"role": "user", "content": context}] if isinstance(context, str) else context
    question = "\n".join(message["content"] for message in messages if message["role"] == "user" and message["content"])
    passages = library.passages_for(question, _named(row, settings), row.origin)
    return "\n\n".join(passage.text for passage in passages)


def _named(row: Record, settings: Specification) -> str | None:
    """The section that the data names for this prompt."""
    if settings.column is None:
        return None
    name = row.fields.get(settings.column)
    if not isinstance(name, str) or not name.strip():
        raise DataError(
            f"{row.origin}: column `{settings.column}` (guidance.column) names no section: {name!r:.60}. Fill it, or "
            "leave guidance.column out, so that sections are found by their words."
        )
    return name


def _with(system: str, messages: list[Message]) -> list[Message]:
    """A system message first; what the data says there follows in the same one."""
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    return [{"role": "system", "content": f"{system}\n\n{messages[0]['content']}"}, *messages[1:]]
