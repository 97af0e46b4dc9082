"""What a tokenizer makes of records: with its chat template, or as plain text, by the functions of training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlpipe.data.chat import as_generated, ended, joined, prompt_context, render
from rlpipe.data.check.lengths import Lengths, said
from rlpipe.data.check.part import Finding, finding
from rlpipe.data.examples import marked_template
from rlpipe.data.records import FIELDS, DataError, Format, Record, Records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWERS = ("completion", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Whole:
    """A sequence that a model is trained on, and its prompt where that is told apart."""

    name: str
    """`prompt + completion`, or the only field."""
    ids: list[int]
    prompt: list[int] | None
    origin: str


def wholes(source: Records, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[Whole], list[str]]:
    """(every sequence of the training records, what the template refuses)."""
    found, refused = [], []
    for record in source.train:
        try:
            found += _wholes(record, source, tokenizer)
        except DataError as error:
            refused.append(str(error))
    return found, refused


def _wholes(record: Record, source: Records, tokenizer: "PreTrainedTokenizerBase") -> list[Whole]:
    if "prompt" not in FIELDS[source.format]:
        return [
            Whole(name, _complete(record.fields[name], record, source, tokenizer), None, record.origin)
            for name in FIELDS[source.format]
        ]
    context = prompt_context(record, source)
    prompt = _ids(context, record, tokenizer, continued=True)
    answers = [name for name in FIELDS[source.format] if name in ANSWERS]
    if not answers:
        return [Whole("prompt", prompt, None, record.origin)]
    whole = {name: joined(context, record.fields[name]) for name in answers}
    return [
        Whole(f"prompt + {name}", _complete(whole[name], record, source, tokenizer), prompt, record.origin)
        for name in answers
    ]


def _complete(context: Any, record: Record, source: Records, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    ids = _ids(context, record, tokenizer, continued=False)
    return as_generated(ids, tokenizer) if source.chat else ended(ids, tokenizer)


def _ids(context: Any, record: Record, tokenizer: "PreTrainedTokenizerBase", continued: bool) -> list[int]:
    [rendered] = render([context], [record.origin], tokenizer, continued)
    return list(rendered.ids)


def lengths(found: Sequence[Whole]) -> dict[str, Lengths]:
    """In tokens, by name."""
    names = dict.fromkeys(whole.name for whole in found)
    return {name: Lengths.of([len(w.ids) for w in found if w.name == name]) for name in names}


def of_sequences(source: Records, found: Sequence[Whole], tokenizer: "PreTrainedTokenizerBase") -> list[Finding]:
    """What is wrong with the sequences as tokens."""
    return [
        *_twice_bos(found, tokenizer),
        *_seams(found),
        *_special_text(source, tokenizer),
        *_endless(source, found, tokenizer),
        *(_unmarked(tokenizer) if source.format is Format.MESSAGES else []),
    ]


def too_long(found: Sequence[Whole], max_length: int) -> list[Finding]:
    """Sequences of more tokens than a run would take."""
    places = [f"{w.origin}: {w.name} has {len(w.ids)} tokens" for w in found if len(w.ids) > max_length]
    fix = "SFT cuts them, preference tasks leave them out. Raise train.max_length, or shorten them."
    return finding("warning", f"sequences of more than {max_length} tokens", places, fix)


def _twice_bos(found: Sequence[Whole], tokenizer: "PreTrainedTokenizerBase") -> list[Finding]:
    bos = tokenizer.bos_token_id
    places = [] if bos is None else [w.origin for w in found if w.ids[:2] == [bos, bos]]
    fix = f"The template writes {tokenizer.bos_token!r} and so does the text, or the template does it twice."
    return finding("error", "sequences that begin with two beginning-of-sequence tokens", places, fix)


def _seams(found: Sequence[Whole]) -> list[Finding]:
    places = [w.origin for w in found if w.prompt is not None and w.ids[: len(w.prompt)] != w.prompt]
    fix = (
        "The model trains on another context than it sees at generation. End prompts on a token boundary, or use a "
        "chat template that renders the prompt the same way in both cases."
    )
    return finding("warning", "prompts that are other tokens once an answer follows", places, fix)


def _special_text(source: Records, tokenizer: "PreTrainedTokenizerBase") -> list[Finding]:
    special = [token for token in tokenizer.all_special_tokens if len(token) > 1]
    places = []
    for record in source.train:
        texts = [said(record.fields[name]) for name in FIELDS[source.format] if name != "label"]
        inside = next((token for token in special if any(token in text for text in texts)), None)
        places += [f"{record.origin}: {inside}"] if inside else []
    fix = "They become special tokens: a turn may end in the middle of a text. Take them out."
    return finding("warning", "texts that spell special tokens", places, fix)


def _endless(source: Records, found: Sequence[Whole], tokenizer: "PreTrainedTokenizerBase") -> list[Finding]:
    eos = tokenizer.eos_token_id
    answers = [w.ids[len(w.prompt or ()) :] for w in found]
    if source.format is Format.PROMPT or eos is None or not found or any(eos in ids for ids in answers):
        return []
    title = f"no answer ends with the end-of-sequence token {tokenizer.eos_token!r}"
    fix = "The model does not learn to stop there; the template's end-of-turn token should be the tokenizer's EOS."
    return [Finding("warning", title, [], fix)]


def _unmarked(tokenizer: "PreTrainedTokenizerBase") -> list[Finding]:
    try:
        marked_template(tokenizer)
    except DataError as error:
        return [Finding("warning", "the chat template does not mark the assistant's turns", [], str(error))]
    return []
