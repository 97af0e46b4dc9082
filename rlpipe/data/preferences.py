"""Preferences as token ids: pairs of sequences of which the first is the better one.

Tokenised once, here, with the functions that render prompts for rollouts: a reward model is trained on the very tokens
that it will be asked to score.
"""

import logging
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from rlpipe.data.chat import as_generated, ended, joined, prompt_context, render, with_system
from rlpipe.data.records import DataError, Format, Record, Records, margin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
logger = logging.getLogger(__name__)
LONGER = " Raise train.max_length, or use a model with a longer context."
"""What helps where nothing fits."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two whole sequences, prompt included; `margin` says by how much the chosen one is better, 0 if nobody does."""

    chosen: list[int]
    rejected: list[int]
    margin: float
    origin: str
    prompt: str
    """What both sides answer, or `origin` where that is not told apart: pairs with the same one are no independent
    evidence."""


def encode_pairs(rows: list[Record], source: Records, tokenizer: "PreTrainedTokenizerBase") -> list[Pair]:
    """All records as pairs, in order. Those whose two sides are the same tokens teach nothing and are left out."""
    sides = [sequences(rows, name, source, tokenizer) for name in ("chosen", "rejected")]
    pairs = [
        Pair(c, r, margin(row) or 0.0, row.origin, str(row.fields.get("prompt") or row.origin))
        for c, r, row in zip(*sides, rows, strict=True)
    ]
    same = [pair for pair in pairs if pair.chosen == pair.rejected]
    return without(pairs, same, "pairs", "prefer a response to itself")


def within(pairs: list[Pair], max_length: int) -> list[Pair]:
    """The pairs of which both sequences fit. A cut one could have lost what makes the difference."""
    too_long = [pair for pair in pairs if _length(pair) > max_length]
    return without(pairs, too_long, "pairs", f"are longer than {max_length} tokens", LONGER)


def truncated_left(pairs: list[Pair], max_length: int, bos: int | None) -> list[Pair]:
    """The pairs, the long ones without the first tokens of what their two sides share: the early turns of a dialogue.

    Both sides lose the same tokens, so that they still differ in the answer alone; a beginning-of-sequence token stays.
    A pair whose difference would have to be cut is left as it is.
    """
    cut = [_cut(pair, max_length, bos) for pair in pairs]
    count = sum(new is not old for new, old in zip(cut, pairs, strict=True))
    if count:
        logger.warning("%d of %d pairs lost their first tokens to fit into %d.", count, len(pairs), max_length)
    return cut


def _cut(pair: Pair, max_length: int, bos: int | None) -> Pair:
    start = int(pair.chosen[:1] == [bos])
    end = start + _length(pair) - max_length
    if end <= start or pair.chosen[:end] != pair.rejected[:end]:
        return pair
    chosen, rejected = (ids[:start] + ids[end:] for ids in (pair.chosen, pair.rejected))
    return replace(pair, chosen=chosen, rejected=rejected)


def _length(pair: Pair) -> int:
    return max(len(pair.chosen), len(pair.rejected))


def numbered(things: Iterable[Hashable]) -> list[int]:
    """Which of the different ones each is, counted from 0 as they appear."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(thing, len(numbers)) for thing in things]


def sequences(rows: list[Record], name: str, source: Records, tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Prompt and response of each record as tokens, as a policy would have written them; the response is the field
    `name`."""
    contexts = [_context(row, name, source) for row in rows]
    rendered = render(contexts, [row.origin for row in rows], tokenizer, continued=False)
    if source.chat:
        return [as_generated(r.ids, tokenizer) for r in rendered]
    return [ended(r.ids, tokenizer) if source.add_eos else r.ids for r in rendered]


def _context(row: Record, name: str, source: Records) -> Any:
    value = row.fields[name]
    if source.format in (Format.PREFERENCE, Format.LABELLED):
        return joined(prompt_context(row, source), value)
    return with_system(value, source.system, row.origin) if source.chat else value


def without(found: list[T], lost: list[T], noun: str, why: str, fix: str = "") -> list[T]:
    """What is left of `found` (things with an `origin`); says what was lost. Raises `DataError` if nothing is left."""
    if not lost:
        return found
    if len(lost) == len(found):
        raise DataError(f"All {len(found)} {noun} {why}.{fix}")
    logger.warning("%d of %d %s %s; they are left out (first: %s).", len(lost), len(found), noun, why, lost[0].origin)
    origins = {one.origin for one in lost}
    return [one for one in found if one.origin not in origins]
