"""Records in TRL's formats, and the check that each row fits.

    prompt and completion   two texts, or two lists of messages
    messages                a list of {role, content}
    text                    one text
    chosen and rejected     two texts or lists of messages, after a prompt or as whole conversations; with an optional
                            number in `margin`: by how much the chosen one is better
    prompt, completion and label   a response and whether it is good

Online RL needs a prompt alone; every other column goes to the rewards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the row, the field, and what to change."""


class Format(StrEnum):
    """Which fields a record must have."""

    PROMPT = "prompt"
    PROMPT_COMPLETION = "prompt and completion"
    MESSAGES = "messages"
    TEXT = "text"
    PREFERENCE = "prompt, chosen and rejected"
    WHOLE_PREFERENCE = "chosen and rejected"
    LABELLED = "prompt, completion and label"


FIELDS = {
    Format.PROMPT: ("prompt",),
    Format.PROMPT_COMPLETION: ("prompt", "completion"),
    Format.MESSAGES: ("messages",),
    Format.TEXT: ("text",),
    Format.PREFERENCE: ("prompt", "chosen", "rejected"),
    Format.WHOLE_PREFERENCE: ("chosen", "rejected"),
    Format.LABELLED: ("prompt", "completion", "label"),
}


@dataclass(frozen=True, slots=True)
class Record:
    """One row: its fields under the standard names (and their own, where renamed), and where it stands."""

    fields: dict[str, Any]
    origin: str
    """For people: `train.jsonl, line 7`."""

    @property
    def file(self) -> str:
        """`train.jsonl`."""
        return self.origin.rpartition(", ")[0]


@dataclass(frozen=True, slots=True)
class Records:
    """What a task learns from, what it is measured on, and how both become text."""

    train: list[Record]
    heldout: list[Record]
    format: Format
    chat: bool
    system: str | None
    add_eos: bool
    """Whether the end-of-sequence token follows plain text; a chat template ends its turns itself."""


def sft_format(first: Record, *more: Record) -> Format:
    """The first of TRL's formats whose fields one of the given records has."""
    if found := _fitting((Format.PROMPT_COMPLETION, Format.MESSAGES, Format.TEXT), (first, *more)):
        return found
    raise DataError(
        f"{first.origin}: fields {sorted(first.fields)} are none of TRL's formats: prompt and completion, messages, or "
        "text. If the fields have other names, say so, for example "
        "`data.columns: {prompt: question, completion: answer}`."
    )


def preference_format(first: Record, *more: Record) -> Format:
    """With a prompt of its own, or with whole conversations, as the given records have it."""
    if repeats_its_prompt(first):
        return Format.WHOLE_PREFERENCE
    if found := _fitting((Format.PREFERENCE, Format.WHOLE_PREFERENCE), (first, *more)):
        return found
    raise DataError(
        f"{first.origin}: a preference has the fields chosen and rejected, and a prompt or none; or prompt, completion "
        f"and label; this record has {sorted(first.fields)}. If the fields have other names, say so, for example "
        "`data.columns: {chosen: better, rejected: worse}`."
    )


def _fitting(candidates: Sequence[Format], records: Sequence[Record]) -> Format | None:
    """The first format whose fields one of the records has."""
    return next((c for c in candidates if any(r.fields.keys() >= set(FIELDS[c]) for r in records)), None)


def repeats_its_prompt(record: Record) -> bool:
    """Whether the prompt, a text, also is the first message of whole conversations."""
    chosen = record.fields.get("chosen")
    begins = chosen[0] if isinstance(chosen, list) and chosen else None
    return isinstance(begins, dict) and begins.get("content") == record.fields.get("prompt")


def labelled_format(first: Record, *more: Record) -> Format:
    """Single responses with a label, or pairs, as the given records have it."""
    if found := _fitting((Format.LABELLED, Format.PREFERENCE, Format.WHOLE_PREFERENCE), (first, *more)):
        return found
    raise DataError(
        f"{first.origin}: fields {sorted(first.fields)} are neither prompt, completion and label, nor a pair of chosen "
        "and rejected. If the fields have other names, say so, for example `data.columns: {label: is_good}`."
    )


def label(record: Record) -> bool:
    """Whether the response is good: true or false, 1 or 0, also as the text of a CSV file. Raises `DataError`."""
    value = record.fields["label"]
    found = {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().lower())
    if found is None or not isinstance(value, bool | int | str):
        raise DataError(f"{record.origin}: field `label` is {shown(value)}; expected true or false.")
    return found


def margin(record: Record) -> float | None:
    """By how much the chosen response is better, where the record says so. Raises `DataError` if it is no number."""
    value = record.fields.get("margin")
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{record.origin}: field `margin` is {shown(value)}; expected a finite number.")
    return number


def check(record: Record, expected: Format, chat: bool) -> None:
    """Raise `DataError` unless every field of the format is there, has content, and suits `data.chat`."""
    for name in FIELDS[expected]:
        if record.fields.get(name) is None:
            raise DataError(
                f"{record.origin}: field `{name}` is missing; every record needs {expected}. It has "
                f"{sorted(k for k, v in record.fields.items() if v is not None)}. If the field has another name, add "
                f"`data.columns: {{{name}: ITS_NAME}}`."
            )
        if name == "label":
            label(record)
        else:
            _check_value(record, name, expected, chat)
    if expected is Format.WHOLE_PREFERENCE and chat and isinstance(record.fields["chosen"], str):
        raise DataError(
            f"{record.origin}: field `chosen` is text without a prompt, which no chat template renders; set "
            "data.chat=false to work on the plain text, or give a prompt, or lists of messages."
        )
    if expected in (Format.PREFERENCE, Format.WHOLE_PREFERENCE):
        margin(record)


def _check_value(record: Record, name: str, expected: Format, chat: bool) -> None:
    value = record.fields[name]
    where = f"{record.origin}: field `{name}`"
    if isinstance(value, str) and name != "messages":
        if not value.strip():
            raise DataError(f"{where} is empty; remove the record or fill it.")
    elif isinstance(value, list) and name != "text":
        _check_messages(value, where, chat)
    else:
        wanted = {"messages": "a list of messages", "text": "text"}.get(name, "text or a list of messages")
        raise DataError(f"{where} is {shown(value)}; expected {wanted}.")
    first = FIELDS[expected][0]
    if type(value) is not type(record.fields[first]):
        raise DataError(f"{where} must be text where `{first}` is text, and messages where `{first}` is messages.")


def _check_messages(messages: list[Any], where: str, chat: bool) -> None:
    if not chat:
        raise DataError(f"{where} is a list of messages, which data.chat=false cannot render; set data.chat=true.")
    if not messages:
        raise DataError(f"{where} is an empty list; remove the record or fill it.")
    for number, message in enumerate(messages, 1):
        _check_message(message, f"{where}, message {number}")


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise DataError(f"{where} is {shown(message)}; expected {{role: ..., content: ...}}.")
    if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
        raise DataError(f"{where} has content {shown(message.get('content'))}; expected text.")


def shown(value: Any) -> str:
    """A value in a message: its type, and what fits of it."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
