"""What is wrong with records one by one: fields, labels, and the two sides of a pair."""

import json
from collections.abc import Sequence
from typing import Any

from rlpipe.data.check.part import Finding, finding
from rlpipe.data.conversions import HH_TURN
from rlpipe.data.records import FIELDS, DataError, Format, Record, check, label

PAIRS = (Format.PREFERENCE, Format.WHOLE_PREFERENCE)
UNBALANCED = 0.2
"""KTO weighs sides whose numbers differ by more than a factor of about four."""


def usable(records: list[Record], expected: Format, chat: bool) -> tuple[list[Record], list[str]]:
    """(records that a run would take, what is wrong with the others)."""
    good, wrong = [], []
    for record in records:
        try:
            check(record, expected, chat)
            good.append(record)
        except DataError as error:
            wrong.append(str(error))
    return good, wrong


def of_transcripts(records: Sequence[Record], expected: Format) -> list[Finding]:
    """Dialogues that were written down as one text, and are taken for plain text."""
    if expected is not Format.WHOLE_PREFERENCE:
        return []
    sides = [(r, r.fields[side]) for r in records for side in ("chosen", "rejected")]
    written = [r.origin for r, text in sides if isinstance(text, str) and HH_TURN.match(text)]
    return finding(
        "warning", "texts that are transcripts of HH-RLHF", list(dict.fromkeys(written)),
        "They are taken as plain text. With --format hh (data.format=hh) their turns become messages, and those that "
        "both begin with the prompt.",
    )  # fmt: skip


def of_pairs(records: Sequence[Record], expected: Format) -> list[Finding]:
    """Pairs that prefer nothing, or compare answers to different questions."""
    if expected not in PAIRS:
        return []
    same = [r.origin for r in records if r.fields["chosen"] == r.fields["rejected"]]
    strange = [r.origin for r in records if _share_nothing(r, expected)]
    apart = [r.origin for r in records if _part_early(r) and not _share_nothing(r, expected)]
    nothing = "error" if len(same) == len(records) else "warning"
    return [
        *finding(nothing, "pairs whose chosen and rejected are the same", same, "They teach nothing and are left out."),
        *finding("error", "pairs without a common prompt", strange, "They compare answers to nothing; remove them."),
        *finding(
            "warning", "pairs that differ before the last answer", apart,
            "Chosen and rejected then answer different questions; remove them if that is not meant.",
        ),
    ]  # fmt: skip


def _share_nothing(record: Record, expected: Format) -> bool:
    """Whether whole texts or conversations differ from their beginning on."""
    chosen, rejected = record.fields["chosen"], record.fields["rejected"]
    return expected is Format.WHOLE_PREFERENCE and chosen[:1] != rejected[:1]


def _part_early(record: Record) -> bool:
    chosen, rejected = record.fields["chosen"], record.fields["rejected"]
    return isinstance(chosen, list) and chosen[:-1] != rejected[:-1]


def of_labels(records: Sequence[Record], expected: Format) -> list[Finding]:
    """Labels that are nearly all the same."""
    if expected is not Format.LABELLED or not records:
        return []
    good = good_labels(records)
    smaller = min(good, len(records) - good)
    says = f"labels: {good} good, {len(records) - good} bad"
    if smaller == 0:
        return [Finding("error", says, [], "There is nothing to compare; add records of the other kind.")]
    if smaller < UNBALANCED * len(records):
        return [Finding("warning", says, [], "With KTO, weigh them: train.desirable_weight, train.undesirable_weight.")]
    return []


def good_labels(records: Sequence[Record]) -> int:
    """How many responses are good."""
    return sum(map(label, records))


def contradictions(records: Sequence[Record], expected: Format) -> list[Finding]:
    """The same response called good here and bad there; the same pair, the other way round."""
    if expected not in (*PAIRS, Format.LABELLED):
        return []
    first: dict[str, str] = {}
    places = []
    for record in records:
        own, opposite = key(record, expected), key(_reversed(record, expected), expected)
        if own != opposite and opposite in first:
            places.append(f"{record.origin}: the opposite of {first[opposite]}")
        first.setdefault(own, record.origin)
    return finding("warning", "records that contradict an earlier one", places, "Keep one of the two.")


def _reversed(record: Record, expected: Format) -> Record:
    fields = record.fields
    if expected is Format.LABELLED:
        return Record(fields | {"label": not label(record)}, record.origin)
    return Record(fields | {"chosen": fields["rejected"], "rejected": fields["chosen"]}, record.origin)


def key(record: Record, expected: Format) -> str:
    """Equal for records with equal content; columns beside the format's do not count."""
    return text_key([label(record) if name == "label" else record.fields[name] for name in FIELDS[expected]])


def text_key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
