"""How long the fields of records are."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from rlpipe.data.records import FIELDS, Format, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of one field, in one unit."""

    median: int
    most: int
    """The 95th percentile: the shortest length that 95 % do not exceed."""
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Lengths":
        """Raises ValueError if there are none."""
        ordered = sorted(lengths)
        return cls(_percentile(ordered, 0.5), _percentile(ordered, 0.95), ordered[-1])


def _percentile(ordered: Sequence[int], share: float) -> int:
    if not ordered:
        raise ValueError("no lengths")
    return ordered[ceil(share * len(ordered)) - 1]


def characters(records: Sequence[Record], expected: Format) -> dict[str, Lengths]:
    """By field; of messages what they say, without roles."""
    return {name: Lengths.of([len(said(r.fields[name])) for r in records]) for name in _texts(expected)}


def tokens(records: Sequence[Record], expected: Format, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Lengths]:
    """By field, without any special token."""
    return {name: _tokens([said(r.fields[name]) for r in records], tokenizer) for name in _texts(expected)}


def _tokens(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> Lengths:
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return Lengths.of([len(ids) for ids in encoded])


def _texts(expected: Format) -> list[str]:
    return [name for name in FIELDS[expected] if name != "label"]


def said(value: Any) -> str:
    """A text, or what messages say, one after the other."""
    return value if isinstance(value, str) else "\n".join(message.get("content") or "" for message in value)
