"""Who speaks in a conversation, and in which order."""

from collections.abc import Iterator, Sequence
from typing import Any

from rlpipe.data.check.part import Finding, finding, messages_of
from rlpipe.data.records import FIELDS, Format, Record

KNOWN = ("system", "developer", "user", "assistant", "tool")
_FOLLOWS = {"user": ("", "system", "assistant"), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
"""Whom each role may follow; "" is the beginning."""


def of_roles(records: Sequence[Record], expected: Format) -> list[Finding]:
    """Roles that nobody knows or that stand where templates do not expect them, and messages that say nothing."""
    unknown, odd, empty, unanswered = [], [], [], []
    for record in records:
        for name, messages in conversations(record, expected):
            where = f"{record.origin}: field `{name}`"
            unknown += [f"{where}, {what}" for what in _unknown(messages)]
            odd += [f"{where}, {what}" for what in _out_of_order(messages)]
            empty += [f"{where}, message {n} is empty" for n, m in enumerate(messages, 1) if _says_nothing(m)]
            if expected is not Format.PROMPT and not any(m["role"] == "assistant" for m in messages):
                unanswered.append(f"{where}: no message of the assistant")
    return [
        *finding("error", "unknown roles", unknown, f"Rename them to one of {', '.join(KNOWN)}."),
        *finding("error", "conversations without an answer", unanswered, "There is nothing to learn from them."),
        *finding("warning", "roles out of order", odd, "Many chat templates refuse this; try yours with --model."),
        *finding("warning", "empty messages", empty, "The model learns to say nothing, or from nothing."),
    ]


def conversations(record: Record, expected: Format) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(the field that it ends with, messages) of each conversation in a record; none where all is text."""
    fields = record.fields
    names = [name for name in FIELDS[expected] if name not in ("prompt", "label")] or ["prompt"]
    if not isinstance(fields[names[0]], list) and not isinstance(fields.get("prompt"), list):
        return
    context = messages_of(fields["prompt"], "user") if "prompt" in FIELDS[expected] and names != ["prompt"] else []
    for name in names:
        yield name, context + messages_of(fields[name], "assistant")


def _unknown(messages: list[dict[str, Any]]) -> Iterator[str]:
    for number, message in enumerate(messages, 1):
        if message["role"] not in KNOWN:
            yield f"message {number} is from `{message['role']}`"


def _out_of_order(messages: list[dict[str, Any]]) -> Iterator[str]:
    """The first message that follows one which it should not."""
    previous = ""
    for number, message in enumerate(messages, 1):
        role = "system" if message["role"] == "developer" else message["role"]
        if role in KNOWN and previous not in _FOLLOWS.get(role, ("",)):
            yield f"message {number} ({role}) follows {previous or 'nothing'}"
            return
        previous = role


def _says_nothing(message: dict[str, Any]) -> bool:
    return not message.get("tool_calls") and not message["content"].strip()
