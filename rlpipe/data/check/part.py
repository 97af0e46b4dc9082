"""What is checked: the records of a file, and what is found about them."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from rlpipe.data.conversions import Style, converted, recognised
from rlpipe.data.files import rows
from rlpipe.data.records import FIELDS, DataError, Format, Record, repeats_its_prompt
from rlpipe.data.source import renamed
from rlpipe.recipe.data import RecordFormat

Severity = Literal["error", "warning"]

BY_NEED = (
    Format.LABELLED,
    Format.PREFERENCE,
    Format.WHOLE_PREFERENCE,
    Format.PROMPT_COMPLETION,
    Format.MESSAGES,
    Format.TEXT,
    Format.PROMPT,
)
"""Those that need more fields first: a pair has a prompt, but is more than that."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of thing that is wrong. An error would stop a run or spoil what it learns or measures."""

    severity: Severity
    title: str
    places: list[str]
    """Where, one line each: `train.jsonl, line 7: field `prompt` is empty`; none where it is of the whole file."""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """The training or the held-out file."""

    path: str
    style: Style
    format: Format | None
    """What most records are; None if they are nothing known."""
    records: list[Record]
    """Those that have the format's fields, unchecked otherwise."""
    unreadable: list[str] = field(default_factory=list)


def load(path: str, key: str, wanted: RecordFormat, columns: dict[str, str], chat: bool) -> Part:
    """Everything that can be read of a file. Raises `DataError` where there is no file, or no column of that name."""
    readable, unreadable = [], []
    for row in rows(path, None, "train", key):
        (unreadable if isinstance(row, DataError) else readable).append(row)
    named = renamed(readable, columns)
    style = recognised(named, wanted)
    records = []
    for record in named:
        try:
            records.append(converted(record, style, chat))
        except DataError as error:
            unreadable.append(error)
    return Part(path, style, _format(records), records, [str(error) for error in unreadable])


def _format(records: list[Record]) -> Format | None:
    own = Counter(map(_format_of, records))
    return own.most_common(1)[0][0] if own else None


def _format_of(record: Record) -> Format | None:
    if repeats_its_prompt(record):
        return Format.WHOLE_PREFERENCE
    return next((f for f in BY_NEED if record.fields.keys() >= set(FIELDS[f])), None)


def is_plain(part: Part) -> bool:
    """Whether the first record that has any holds texts, and not messages."""
    values = (record.fields.get(FIELDS[part.format][0]) for record in part.records)
    return isinstance(next((value for value in values if value is not None), ""), str)


def messages_of(value: Any, role: str) -> list[dict[str, Any]]:
    """A field as messages; a text is one of `role`."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def finding(severity: Severity, title: str, places: list[str], fix: str = "") -> list[Finding]:
    """None, if it is nowhere."""
    return [Finding(severity, title, places, fix)] if places else []
