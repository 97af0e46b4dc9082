"""Everything that `rlpipe data check` finds out about a file, and about a held-out one beside it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlpipe.data.check import content, duplicates, lengths, roles, template
from rlpipe.data.check.lengths import Lengths
from rlpipe.data.check.part import Finding, Part, finding, is_plain, load
from rlpipe.data.records import Format, Record, Records
from rlpipe.recipe.data import RecordFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are to be read, and what for."""

    format: RecordFormat = "auto"
    columns: dict[str, str] | None = None
    """Standard name -> the file's own."""
    tokenizer: "PreTrainedTokenizerBase | None" = None
    max_length: int | None = None
    """Tokens; only with a tokenizer."""
    near: bool = False
    """Look for texts that are nearly the same, too."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What is told of one file."""

    part: Part
    good: list[Record]
    """Those that a run would take."""
    characters: dict[str, Lengths]
    tokens: dict[str, Lengths]
    """Of fields, then of whole sequences; empty without a tokenizer."""
    findings: list[Finding]

    @property
    def rows(self) -> int:
        """All that is in the file, readable or not."""
        return len(self.part.records) + len(self.part.unreadable)


@dataclass(frozen=True, slots=True)
class Report:
    """Of all files together."""

    train: Checked
    heldout: Checked | None
    between: list[Finding]

    @property
    def findings(self) -> list[Finding]:
        return [*self.train.findings, *(self.heldout.findings if self.heldout else []), *self.between]

    def count(self, severity: str) -> int:
        return sum(one.severity == severity for one in self.findings)


def inspect(path: str, heldout: str | None, reading: Reading) -> Report:
    """Check a file, and what it has in common with the held-out one. Raises `DataError` if one cannot be opened."""
    train = check(path, "FILE", reading, None)
    if heldout is None:
        return Report(train, None, [])
    other = check(heldout, "--heldout", reading, train.part.format)
    expected = train.part.format
    shared = _shared(train.good, other.good, expected, reading.near) if expected else []
    return Report(train, other, shared)


def _shared(train: list[Record], heldout: list[Record], expected: Format, near: bool) -> list[Finding]:
    found = duplicates.between(train, heldout, expected)
    return found + (duplicates.nearly_between(train, heldout, expected) if near else [])


def check(path: str, key: str, reading: Reading, expected: Format | None) -> Checked:
    """One file; `expected` is the format of the file before."""
    templated = reading.tokenizer is None or reading.tokenizer.chat_template is not None
    part = load(path, key, reading.format, reading.columns or {}, templated)
    part = replace(part, format=expected or part.format)
    unreadable = finding("error", "rows that cannot be read", part.unreadable)
    if part.format is None:
        return Checked(part, [], {}, {}, unreadable + _unknown(part))
    plain = is_plain(part) and (part.format in (Format.WHOLE_PREFERENCE, Format.TEXT) or not templated)
    good, wrong = content.usable(part.records, part.format, chat=not plain)
    left_out = "In a run, data.skip_unusable=true leaves them out."
    unusable = finding("error", "records that cannot be used", wrong, left_out)
    if not good:
        return Checked(part, [], {}, {}, unreadable + unusable)
    found = unreadable + unusable + _of_content(good, part.format)
    found += duplicates.nearly_within(good, part.format) if reading.near else []
    tokens, of_tokens = _of_tokens(Records(good, [], part.format, not plain, None, True), reading)
    return Checked(part, good, lengths.characters(good, part.format), tokens, found + of_tokens)


def _unknown(part: Part) -> list[Finding]:
    if not part.records:
        return [] if part.unreadable else [Finding("error", "no records", [], "The file is empty.")]
    first = part.records[0]
    fix = "Give the fields' names, for example --columns prompt=question,completion=answer, or the format: --format hh."
    if nested := [name for name, value in first.fields.items() if isinstance(value, list | dict)]:
        fix += f" What stands inside of `{nested[0]}` has to become records of its own first."
    return [Finding("error", "no known format", [f"{first.origin}: fields {', '.join(sorted(first.fields))}"], fix)]


def _of_content(good: list[Record], expected: Format) -> list[Finding]:
    return [
        *roles.of_roles(good, expected),
        *content.of_transcripts(good, expected),
        *content.of_pairs(good, expected),
        *content.of_labels(good, expected),
        *content.contradictions(good, expected),
        *duplicates.within(good, expected),
    ]


def _of_tokens(source: Records, reading: Reading) -> tuple[dict[str, Lengths], list[Finding]]:
    if (tokenizer := reading.tokenizer) is None:
        return {}, []
    fields = lengths.tokens(source.train, source.format, tokenizer)
    if source.chat and tokenizer.chat_template is None:
        fix = "Give a model that has one, or model.chat_template=FILE in the recipe."
        return fields, [Finding("error", "messages, but the tokenizer has no chat template", [], fix)]
    found, refused = template.wholes(source, tokenizer)
    limit = template.too_long(found, reading.max_length) if reading.max_length else []
    return fields | template.lengths(found), [
        *finding("error", "conversations that the chat template refuses", refused),
        *template.of_sequences(source, found, tokenizer),
        *limit,
    ]
