"""Better and worse responses to a prompt as token ids, for losses of the policy's own log-probabilities.

The sequences are those of `rlpipe.data.preferences`: what a policy would have written, up to its end of sequence. Where
prompt and response meet is where the prompt, opened for the assistant, and the whole stop being the same tokens.
"""

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from rlpipe.data.chat import prompt_context, render, with_system
from rlpipe.data.preferences import LONGER, encode_pairs, sequences, within, without
from rlpipe.data.records import DataError, Format, Record, Records, label
from rlpipe.data.seams import common_prefix, warn_of_seams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ResponsePair:
    """A prompt, and two responses of which the first is the better one."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    origin: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A prompt, and a response that is good or bad."""

    prompt: list[int]
    completion: list[int]
    good: bool
    origin: str


def encode_response_pairs(
    rows: list[Record], source: Records, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[ResponsePair]:
    """The pairs that fit, in order."""
    pairs = within(encode_pairs(rows, source, tokenizer), max_length)
    row_of = {row.origin: row for row in rows}
    prompts = _prompts([row_of[pair.origin] for pair in pairs], source, tokenizer)
    both = zip(pairs, prompts, strict=True)
    starts = [min(common_prefix(p, pair.chosen), common_prefix(p, pair.rejected)) for pair, p in both]
    if not _is_whole_text(rows[0], source):
        warn_of_seams([pair.origin for pair in pairs], prompts, starts)
    cut = zip(pairs, starts, strict=True)
    return [ResponsePair(pair.chosen[:s], pair.chosen[s:], pair.rejected[s:], pair.origin) for pair, s in cut]


def encode_judged(
    rows: list[Record], source: Records, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[Judged]:
    """The responses that fit, in order; of a pair first the better one, then the other."""
    if source.format is not Format.LABELLED:
        pairs = encode_response_pairs(rows, source, tokenizer, max_length)
        return [one for pair in pairs for one in _taken_apart(pair)]
    wholes = sequences(rows, "completion", source, tokenizer)
    prompts = _prompts(rows, source, tokenizer)
    starts = [common_prefix(prompt, whole) for prompt, whole in zip(prompts, wholes, strict=True)]
    warn_of_seams([row.origin for row in rows], prompts, starts)
    judged = [Judged(w[:s], w[s:], label(r), r.origin) for w, s, r in zip(wholes, starts, rows, strict=True)]
    too_long = [one for one in judged if len(one.prompt) + len(one.completion) > max_length]
    return without(judged, too_long, "responses", f"are longer than {max_length} tokens", LONGER)


def _prompts(rows: list[Record], source: Records, tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """The prompt of each record, as a rollout would render it; of two whole texts that have none, the first one: what
    both share is then their prompt."""
    contexts = [_prompt(row, source) for row in rows]
    rendered = render(contexts, [row.origin for row in rows], tokenizer, continued=True)
    return [prompt.ids for prompt in rendered]


def _prompt(row: Record, source: Records) -> Any:
    if source.format is not Format.WHOLE_PREFERENCE:
        return prompt_context(row, source)
    chosen, rejected = row.fields["chosen"], row.fields["rejected"]
    if _is_whole_text(row, source):
        return chosen
    shared = [message for message, _ in takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False))]
    if not shared:
        raise DataError(
            f"{row.origin}: chosen and rejected begin with different messages; they answer no common prompt."
        )
    return with_system(shared, source.system, row.origin)


def _is_whole_text(row: Record, source: Records) -> bool:
    return source.format is Format.WHOLE_PREFERENCE and isinstance(row.fields["chosen"], str)


def _taken_apart(pair: ResponsePair) -> tuple[Judged, Judged]:
    good = Judged(pair.prompt, pair.chosen, True, pair.origin)
    return good, Judged(pair.prompt, pair.rejected, False, pair.origin)
