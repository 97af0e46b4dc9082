"""Records that are written in other projects' ways, made into TRL's formats; own fields stay beside the new ones.

alpaca     instruction, input, output                    -> prompt, completion
sharegpt   conversations: [{from, value}, ...], system   -> messages
hh         chosen and rejected: "\\n\\nHuman: ...\\n\\nAssistant: ..." -> prompt, chosen, rejected
"""

import re
from itertools import takewhile
from typing import Any, Literal

from rlpipe.data.records import DataError, Record, shown
from rlpipe.recipe.data import RecordFormat

Style = Literal["trl", "alpaca", "sharegpt", "hh"]

_TRL_FIELDS = {"prompt", "completion", "messages", "text", "chosen", "rejected"}

_ALPACA = (
    "Below is an instruction that describes a task{input}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{prompt}\n\n### Response:\n"
)
"""Stanford's words (github.com/tatsu-lab/stanford_alpaca), in which models without a chat template are asked."""

_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}

_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
HH_TURN = re.compile(r"\n\n(Human|Assistant):")
"""What opens a turn of a transcript of HH-RLHF."""


def recognised(records: list[Record], wanted: RecordFormat) -> Style:
    """The format that is asked for; of `auto` the one that the first record's fields leave no doubt about."""
    if wanted != "auto":
        return wanted
    first = records[0].fields if records else {}
    if _TRL_FIELDS & first.keys():
        return "trl"
    if {"instruction", "output"} <= first.keys():
        return "alpaca"
    turns = first.get("conversations")
    first_turn = turns[0] if isinstance(turns, list) and turns else None
    return "sharegpt" if isinstance(first_turn, dict) and {"from", "value"} <= first_turn.keys() else "trl"


def converted(record: Record, style: Style, chat: bool) -> Record:
    """The record with TRL's fields. Raises `DataError` if it is not written in that way."""
    if style == "trl":
        return record
    made = {"alpaca": _alpaca, "sharegpt": _sharegpt, "hh": _hh}[style](record, chat)
    return Record(record.fields | made, record.origin)


def _alpaca(record: Record, chat: bool) -> dict[str, Any]:
    for name in ("system", "history"):
        if record.fields.get(name):
            raise DataError(
                f"{record.origin}: field `{name}` has no place in data.format=alpaca, and would be lost. Write the "
                "record as `messages`."
            )
    instruction, output = (_text(record, name, "alpaca") for name in ("instruction", "output"))
    context = _text(record, "input", "alpaca") if record.fields.get("input") else ""
    if chat:
        return {"prompt": f"{instruction}\n\n{context}" if context else instruction, "completion": output}
    paired = ", paired with an input that provides further context" if context else ""
    asked = f"{instruction}\n\n### Input:\n{context}" if context else instruction
    return {"prompt": _ALPACA.format(input=paired, prompt=asked), "completion": output}


def _sharegpt(record: Record, chat: bool) -> dict[str, Any]:
    turns = record.fields.get("conversations")
    if not isinstance(turns, list):
        raise _unlike(record, "conversations", "sharegpt", "a list of {from: ..., value: ...}")
    messages = [_message(turn, f"{record.origin}: field `conversations`, turn {n}") for n, turn in enumerate(turns, 1)]
    system = [{"role": "system", "content": _text(record, "system", "sharegpt")}] if record.fields.get("system") else []
    return {"messages": system + messages}


def _message(turn: Any, where: str) -> dict[str, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise DataError(f"{where} is {shown(turn)}; data.format=sharegpt expects {{from: ..., value: text}}.")
    if turn.get("from") not in _SHAREGPT_ROLES:
        raise DataError(
            f"{where} is from {shown(turn.get('from'))}; data.format=sharegpt knows {', '.join(_SHAREGPT_ROLES)}. "
            "Rename it, or write the record as `messages`."
        )
    return {"role": _SHAREGPT_ROLES[turn["from"]], "content": turn["value"]}


def _hh(record: Record, chat: bool) -> dict[str, Any]:
    """What both dialogues begin with is the prompt."""
    sides = [_dialogue(record, name) for name in ("chosen", "rejected")]
    shared = [turn for turn, _ in takewhile(lambda two: two[0] == two[1], zip(*sides, strict=False))]
    shared = shared[: min(map(len, sides)) - 1]  # two dialogues that are the same still have an answer each
    if not shared:
        raise DataError(
            f"{record.origin}: fields `chosen` and `rejected` begin with different turns; remove the record."
        )
    chosen, rejected = (side[len(shared) :] for side in sides)
    if chat:
        return {"prompt": _turns(shared), "chosen": _turns(chosen), "rejected": _turns(rejected)}
    return _plain_sides(shared, chosen, rejected)


def _plain_sides(shared: list[tuple[str, str]], *answers: list[tuple[str, str]]) -> dict[str, str]:
    """As text, in which the mark before the answers (`\\n\\nAssistant:`) belongs to the prompt if both have one."""
    texts = ["".join(f"\n\n{who}:{said}" for who, said in side) for side in (shared, *answers)]
    mark = f"\n\n{answers[0][0][0]}:"
    if answers[0][0][0] == answers[1][0][0]:
        texts = [texts[0] + mark, *(text.removeprefix(mark) for text in texts[1:])]
    return dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))


def _dialogue(record: Record, name: str) -> list[tuple[str, str]]:
    """(who, what was said) of each turn, as it stands."""
    begin, *parts = HH_TURN.split("\n\n" + _text(record, name, "hh").lstrip("\n"))
    if begin.strip() or not parts:
        raise _unlike(record, name, "hh", r"text that begins with `\n\nHuman:` or `\n\nAssistant:`")
    return list(zip(parts[::2], parts[1::2], strict=True))


def _turns(dialogue: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": _HH_ROLES[who], "content": said.strip()} for who, said in dialogue]


def _text(record: Record, name: str, style: str) -> str:
    value = record.fields.get(name)
    if not isinstance(value, str):
        raise _unlike(record, name, style, "text")
    return value


def _unlike(record: Record, name: str, style: str, expected: str) -> DataError:
    value = record.fields.get(name)
    found = f"is {shown(value)}" if value is not None else f"is missing (it has {sorted(record.fields)})"
    return DataError(
        f"{record.origin}: field `{name}` {found}; data.format={style} expects {expected}. Mend the record, or "
        "give the format that it has as data.format."
    )
