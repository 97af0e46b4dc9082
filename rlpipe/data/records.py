"""Records in TRL's formats, and the check that each row fits.

    prompt and completion   two texts, or two lists of messages
    messages                a list of {role, content}
    text                    one text

Online RL needs a prompt alone; every other column goes to the rewards.
"""

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


_FIELDS = {
    Format.PROMPT: ("prompt",),
    Format.PROMPT_COMPLETION: ("prompt", "completion"),
    Format.MESSAGES: ("messages",),
    Format.TEXT: ("text",),
}


@dataclass(frozen=True, slots=True)
class Record:
    """One row: its fields under the standard names (and their own, where renamed), and where it stands."""

    fields: dict[str, Any]
    origin: str
    """For people: `train.jsonl, line 7`."""


def sft_format(first: Record, *more: Record) -> Format:
    """The first of TRL's formats whose fields one of the given records has."""
    for candidate in (Format.PROMPT_COMPLETION, Format.MESSAGES, Format.TEXT):
        if any(record.fields.keys() >= set(_FIELDS[candidate]) for record in (first, *more)):
            return candidate
    raise DataError(
        f"{first.origin}: fields {sorted(first.fields)} are none of TRL's formats: prompt and completion, messages, or "
        "text. If the fields have other names, say so, for example "
        "`data.columns: {prompt: question, completion: answer}`."
    )


def check(record: Record, expected: Format, chat: bool) -> None:
    """Raise `DataError` unless every field of the format is there, has content, and suits `data.chat`."""
    for name in _FIELDS[expected]:
        if record.fields.get(name) is None:
            raise DataError(
                f"{record.origin}: field `{name}` is missing; every record needs {expected}. It has "
                f"{sorted(k for k, v in record.fields.items() if v is not None)}. If the field has another name, add "
                f"`data.columns: {{{name}: ITS_NAME}}`."
            )
        _check_value(record, name, expected, chat)


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
        raise DataError(f"{where} is {_shown(value)}; expected {wanted}.")
    if name == "completion" and type(value) is not type(record.fields["prompt"]):
        raise DataError(f"{where} must be text where `prompt` is text, and messages where `prompt` is messages.")


def _check_messages(messages: list[Any], where: str, chat: bool) -> None:
    if not chat:
        raise DataError(f"{where} is a list of messages, which data.chat=false cannot render; set data.chat=true.")
    if not messages:
        raise DataError(f"{where} is an empty list; remove the record or fill it.")
    for number, message in enumerate(messages, 1):
        _check_message(message, f"{where}, message {number}")


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise DataError(f"{where} is {_shown(message)}; expected {{role: ..., content: ...}}.")
    if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
        raise DataError(f"{where} has content {_shown(message.get('content'))}; expected text.")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
