"""Records that stand twice: in a file, or in training and held-out."""

from collections.abc import Sequence
from typing import Any

from rlpipe.data.check.content import key, text_key
from rlpipe.data.check.part import Finding, finding
from rlpipe.data.near_duplicates import near_duplicates, overlaps
from rlpipe.data.records import FIELDS, Format, Record


def within(records: Sequence[Record], expected: Format) -> list[Finding]:
    """Records that are the same as an earlier one of the file."""
    first: dict[str, str] = {}
    places = []
    for record in records:
        earlier = first.setdefault(key(record, expected), record.origin)
        if earlier != record.origin:
            places.append(f"{record.origin}: as {earlier.rpartition(', ')[2]}")
    return finding("warning", "records that repeat an earlier one", places, "They count twice in training.")


def between(train: Sequence[Record], heldout: Sequence[Record], expected: Format) -> list[Finding]:
    """Held-out records, and held-out prompts, that are trained on."""
    known = {key(record, expected): record.origin for record in reversed(train)}
    whole = [f"{r.origin}: as {known[key(r, expected)]}" for r in heldout if key(r, expected) in known]
    found = finding(
        "error", "held-out records that are trained on", whole,
        "What is measured on them says nothing about new data; remove them on one side.",
    )  # fmt: skip
    if "prompt" not in FIELDS[expected] or expected is Format.PROMPT:
        return found
    asked = {text_key(record.fields["prompt"]): record.origin for record in reversed(train)}
    others = [record for record in heldout if key(record, expected) not in known]
    shared = [(r, asked[k]) for r in others if (k := text_key(r.fields["prompt"])) in asked]
    return found + finding(
        "warning", "held-out prompts that are trained on, with other answers",
        [f"{record.origin}: prompt of {origin}" for record, origin in shared],
        "Results on them flatter; keep each prompt on one side.",
    )  # fmt: skip


def nearly_within(records: Sequence[Record], expected: Format) -> list[Finding]:
    """Records that say nearly what an earlier one says; those that say the same are `within`'s."""
    texts = [_text([record.fields[name] for name in _texts(expected)]) for record in records]
    pairs = [(i, j) for i, j in near_duplicates(texts) if key(records[i], expected) != key(records[j], expected)]
    places = [f"{records[i].origin}: nearly as {records[j].origin.rpartition(', ')[2]}" for i, j in pairs]
    return finding(
        "warning", "records that nearly repeat an earlier one", places, "They count nearly twice in training."
    )


def nearly_between(train: Sequence[Record], heldout: Sequence[Record], expected: Format) -> list[Finding]:
    """Held-out prompts, or whole texts where there are none, that are nearly those of a training record."""
    prompted = "prompt" in FIELDS[expected]
    names = ["prompt"] if prompted else _texts(expected)
    ours, theirs = ([_text([record.fields[name] for name in names]) for record in part] for part in (heldout, train))
    pairs = [(i, j) for i, j in overlaps(ours, theirs) if ours[i] != theirs[j]]
    places = [f"{heldout[i].origin}: nearly as {train[j].origin}" for i, j in pairs]
    fix = "Results on them flatter; remove them on one side."
    return finding(
        "warning", f"held-out {'prompts' if prompted else 'records'} that are nearly trained on", places, fix
    )


def _texts(expected: Format) -> list[str]:
    return [name for name in FIELDS[expected] if name != "label"]


def _text(value: Any) -> str:
    """What stands in texts, messages and lists of them."""
    if isinstance(value, dict):
        return _text(value.get("content"))
    return "\n".join(map(_text, value)) if isinstance(value, list) else str(value or "")
