"""Records that stand twice: in a file, or in training and held-out."""

from collections.abc import Sequence

from rlpipe.data.check.content import key, text_key
from rlpipe.data.check.part import Finding, finding
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
