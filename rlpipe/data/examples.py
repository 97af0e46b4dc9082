"""Records as training examples: token ids, and labels that are -100 wherever the loss must not look.

Tokenised once, here, with the functions that render prompts for rollouts: what SFT trains on is what generation sees.
"""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rlpipe.data.chat import Rendered, ended, joined, prompt_context, render, require_template, with_system
from rlpipe.data.records import DataError, Format, Record, Records
from rlpipe.data.seams import common_prefix, warn_of_seams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

IGNORED = -100
LossOn = Literal["completion", "assistant", "all"]


@dataclass(frozen=True, slots=True)
class Example:
    """One record as the trainer takes it; `labels[t]` is `ids[t]` or -100."""

    ids: list[int]
    labels: list[int]
    origin: str


def encode(rows: list[Record], source: Records, tokenizer: "PreTrainedTokenizerBase", loss_on: LossOn) -> list[Example]:
    """All records as examples, untruncated, in order."""
    _check_loss(source, loss_on)
    if source.format is Format.PROMPT_COMPLETION:
        examples = _prompt_completion(rows, source, tokenizer, loss_on)
    else:
        contexts = [_whole(row, source) for row in rows]
        rendered = _render_whole(contexts, rows, source, tokenizer, loss_on)
        examples = [Example(r.ids, _labels(r, 0), row.origin) for r, row in zip(rendered, rows, strict=True)]
    _check_labels(examples, tokenizer)
    return examples


def _check_loss(source: Records, loss_on: LossOn) -> None:
    if loss_on == "completion" and source.format is not Format.PROMPT_COMPLETION:
        fits = "assistant" if source.format is Format.MESSAGES else "all"
        raise DataError(
            f"train.loss_on=completion needs records with prompt and completion; these have {source.format}. "
            f"Set train.loss_on={fits}."
        )
    if loss_on == "assistant" and (source.format is Format.TEXT or not source.chat):
        raise DataError(
            "train.loss_on=assistant needs conversations (data.chat=true); set train.loss_on=completion or all."
        )


def _prompt_completion(
    rows: list[Record], source: Records, tokenizer: "PreTrainedTokenizerBase", loss_on: LossOn
) -> list[Example]:
    contexts = [prompt_context(row, source) for row in rows]
    prompts = render(contexts, [row.origin for row in rows], tokenizer, continued=True)
    conversations = [joined(c, row.fields["completion"]) for c, row in zip(contexts, rows, strict=True)]
    wholes = _render_whole(conversations, rows, source, tokenizer, loss_on)
    starts = [common_prefix(prompt.ids, whole.ids) for prompt, whole in zip(prompts, wholes, strict=True)]
    warn_of_seams([row.origin for row in rows], [prompt.ids for prompt in prompts], starts)
    return [
        Example(whole.ids, _labels(whole, start if loss_on == "completion" else 0), row.origin)
        for whole, start, row in zip(wholes, starts, rows, strict=True)
    ]


def _whole(row: Record, source: Records) -> Any:
    if source.format is Format.TEXT:
        return row.fields["text"]
    return with_system(row.fields["messages"], source.system, row.origin)


def _render_whole(
    contexts: list[Any], rows: list[Record], source: Records, tokenizer: "PreTrainedTokenizerBase", loss_on: LossOn
) -> list[Rendered]:
    marked = loss_on == "assistant"
    template = marked_template(tokenizer) if marked else None
    origins = [row.origin for row in rows]
    rendered = render(contexts, origins, tokenizer, continued=False, template=template, assistant_mask=marked)
    if contexts and isinstance(contexts[0], str) and source.add_eos:  # a template ends its turns itself
        return [Rendered(ended(r.ids, tokenizer)) for r in rendered]
    return rendered


def marked_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """A template with `{% generation %}` marks: None if the tokenizer's own has them, else TRL's for its family."""
    require_template(tokenizer)
    if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
        return None
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except ValueError:
        raise DataError(
            "train.loss_on=assistant: the tokenizer's chat template does not mark the assistant's turns, and TRL knows "
            "no marked form of it. Put {% generation %}...{% endgeneration %} around the assistant's content and "
            "end-of-turn token in a copy and give it as model.chat_template=FILE, or set train.loss_on to another."
        ) from None


def _labels(rendered: Rendered, start: int) -> list[int]:
    wanted = rendered.assistant_mask or [1] * len(rendered.ids)
    return [token if t >= start and wanted[t] else IGNORED for t, token in enumerate(rendered.ids)]


def _check_labels(examples: list[Example], tokenizer: "PreTrainedTokenizerBase") -> None:
    for example in examples:
        if all(label == IGNORED for label in example.labels):
            raise DataError(f"{example.origin}: no token of this record is in the loss (train.loss_on); remove it.")
    eos = tokenizer.eos_token_id
    if examples and eos is not None and not any(eos in example.labels for example in examples):
        logger.warning(
            "No training label is the end-of-sequence token %r: the model does not learn to stop there. The chat "
            "template's end-of-turn token should be the tokenizer's EOS, or one of rollout.stop_token_ids.",
            tokenizer.eos_token,
        )


def truncate(examples: list[Example], max_length: int) -> list[Example]:
    """Examples cut to `max_length` tokens. Says how many were cut; leaves out, by name, those with no loss left."""
    overlong = sum(len(e.ids) > max_length for e in examples)
    if not overlong:
        return examples
    cut = [Example(e.ids[:max_length], e.labels[:max_length], e.origin) for e in examples]
    whole = [e for e in cut if any(label != IGNORED for label in e.labels)]
    logger.warning("%d of %d records are longer than %d tokens and were cut.", overlong, len(examples), max_length)
    if len(whole) < len(cut):
        lost = [e.origin for e in cut if all(label == IGNORED for label in e.labels)]
        what = f"{len(lost)} records have nothing to learn from in their first {max_length} tokens"
        if not whole:
            raise DataError(f"All {what}. Raise train.max_length, or use a model with a longer context.")
        logger.warning("%s and are left out (first: %s).", what, "; ".join(lost[:3]))
    return whole


def split(examples: list[Example], max_length: int) -> list[Example]:
    """Examples of at most `max_length` tokens: longer ones in pieces, as TRL's `bfd_split` makes them. What has no loss
    is left out."""
    pieces = (
        Example(e.ids[start : start + max_length], e.labels[start : start + max_length], e.origin)
        for e in examples
        for start in range(0, len(e.ids), max_length)
    )
    return [piece for piece in pieces if any(label != IGNORED for label in piece.labels)]
