"""Pairs from completions that are labelled good or bad one by one: TRL's unpaired preference format.

    prompt, completion, label      label: true or false, as a checker of answers or a reader gives it

Only completions of the same prompt are compared.
"""

import json
import logging
from itertools import cycle
from typing import Any

from rlpipe.data.records import Format, Record, check, label

logger = logging.getLogger(__name__)


def is_labelled(record: Record) -> bool:
    """Whether it has a label and is no pair yet."""
    return "label" in record.fields and not {"chosen", "rejected"} & record.fields.keys()


def paired(records: list[Record], chat: bool) -> list[Record]:
    """Each prompt's good completions against its bad ones, prompts in the order in which they first appear.

    A prompt gives as many pairs as it has completions on its larger side; the smaller side takes turns. So every
    completion of a prompt that has both is used, and none of 64 makes a thousand pairs.
    """
    prompts: dict[str, dict[bool, list[Record]]] = {}
    for record in records:
        check(record, Format.LABELLED, chat)
        sides = prompts.setdefault(json.dumps(record.fields["prompt"]), {True: [], False: []})
        sides[label(record)].append(record)
    one_sided = sum(not (sides[True] and sides[False]) for sides in prompts.values())
    if one_sided:
        logger.warning("%d of %d prompts have only good or only bad completions, which compare with nothing; they are "
                       "left out.", one_sided, len(prompts))  # fmt: skip
    return [pair for sides in prompts.values() for pair in _pairs(sides[True], sides[False])]


def _pairs(good: list[Record], bad: list[Record]) -> list[Record]:
    if not good or not bad:
        return []
    chosen, rejected = (good, cycle(bad)) if len(good) >= len(bad) else (cycle(good), bad)
    return [_pair(*both) for both in zip(chosen, rejected, strict=False)]


def _pair(good: Record, bad: Record) -> Record:
    own = {name: value for name, value in good.fields.items() if name not in ("completion", "label")}
    sides: dict[str, Any] = {"chosen": good.fields["completion"], "rejected": bad.fields["completion"]}
    return Record(own | sides, f"{good.origin} against {bad.origin.rpartition(', ')[2]}")
