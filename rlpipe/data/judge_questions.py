"""Preferences as questions to a judge, with their answers: what one learns to judge from."""

from itertools import chain
from typing import Any

from rlpipe.data.judge_template import Template
from rlpipe.data.records import DataError, Format, Record, Records


def questions(source: Records, template: Template) -> Records:
    """Each pair in both orders, so that no place is the better one more often."""
    if not template.compares:
        raise DataError(f"template {template.name} grades single responses; pairs need one whose options are a list")
    if source.format is not Format.PREFERENCE:
        raise DataError(f"comparisons need records with {Format.PREFERENCE}; these have {source.format}")
    train, heldout = (
        list(chain.from_iterable(_asked(record, source, template) for record in part))
        for part in (source.train, source.heldout)
    )
    return Records(train, heldout, Format.PROMPT_COMPLETION, True, None, True)


def _asked(record: Record, source: Records, template: Template) -> list[Record]:
    fields = record.fields
    said = {side: text_of(fields[side]) for side in ("chosen", "rejected")}
    own = {name: str(value) for name, value in fields.items()} | {"prompt": transcript(fields["prompt"])}
    orders = [("chosen", "rejected"), ("rejected", "chosen")]
    return [
        Record(
            {
                "prompt": list(template.filled(own | {"first": said[first], "second": said[second]})),
                "completion": [{"role": "assistant", "content": template.options[first == "rejected"]}],
                "answer": template.options[first == "rejected"],
            },
            record.origin,
        )
        for first, second in orders
    ]


def transcript(prompt: str | list[dict[str, Any]]) -> str:
    """What a prompt asks, for a judge to read: a text, the only message, or the turns with their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n\n".join(f"{message['role']}: {message.get('content')}" for message in prompt)


def text_of(response: str | list[dict[str, Any]]) -> str:
    """A response as text: of messages the last one."""
    return response if isinstance(response, str) else str(response[-1].get("content"))
