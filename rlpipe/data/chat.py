"""How a record's prompt becomes tokens: through the tokenizer's own chat template, or as plain text."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlpipe.data.flow import Prompt
from rlpipe.data.records import DataError, Format, Record, Records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids of a text; `assistant_mask` is 1 on what the template marks as written by the assistant."""

    ids: list[int]
    assistant_mask: list[int] | None = None


def render_prompts(records: Records, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[Prompt], list[Prompt]]:
    """(training, held-out) prompts, ready to be continued by the model."""
    heldout = render_heldout(records, tokenizer)
    return _prompts(records, records.train, "train", tokenizer), heldout


def render_heldout(records: Records, tokenizer: "PreTrainedTokenizerBase") -> list[Prompt]:
    """The held-out ones alone."""
    if records.format in (Format.MESSAGES, Format.TEXT):
        raise DataError(
            f"Only records with a prompt can be answered, and these have {records.format}. Rename a column "
            "(`data.columns: {prompt: ITS_NAME}`), or leave `rewards` out of an SFT recipe."
        )
    return _prompts(records, records.heldout, "heldout", tokenizer)


def _prompts(source: Records, rows: list[Record], part: str, tokenizer: "PreTrainedTokenizerBase") -> list[Prompt]:
    contexts = [prompt_context(row, source) for row in rows]
    rendered = render(contexts, [row.origin for row in rows], tokenizer, continued=True)
    texts = [_text(context, tokenizer) for context in contexts]
    return [_prompt(part, i, *row) for i, row in enumerate(zip(rows, rendered, contexts, texts, strict=True))]


def _prompt(
    part: str, index: int, record: Record, rendered: Rendered, context: str | list[Message], text: str
) -> Prompt:
    tokens = np.asarray(rendered.ids, dtype=np.int32)
    digest = hashlib.blake2b(tokens.astype("<i4").tobytes(), digest_size=4).hexdigest()
    columns = {name: value for name, value in record.fields.items() if name not in ("prompt", "completion")}
    messages = None if isinstance(context, str) else context
    return Prompt(f"{part}-{index}-{digest}", tokens, text, columns, messages)


def prompt_context(record: Record, source: Records) -> str | list[Message]:
    """The prompt as plain text, or as messages with the recipe's system message first."""
    prompt = record.fields["prompt"]
    if not source.chat:
        return prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return with_system(messages, source.system, record.origin)


def with_system(messages: list[Message], system: str | None, origin: str) -> list[Message]:
    if system is None:
        return messages
    if messages[0]["role"] == "system":
        raise DataError(f"{origin}: the record has a system message and data.system is set too; remove one of them.")
    return [{"role": "system", "content": system}, *messages]


def joined(context: str | list[Message], completion: str | list[Message]) -> str | list[Message]:
    """A prompt and what follows it, as one text or one conversation."""
    if isinstance(context, list) and isinstance(completion, str):
        return [*context, {"role": "assistant", "content": completion}]
    return context + completion


def ended(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Plain text with the end-of-sequence token, if there is one and it is not there already."""
    eos = tokenizer.eos_token_id
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def as_generated(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """A rendered conversation without what the template writes after the last end-of-sequence token (often a line
    end): a policy stops at that token, and what it wrote is to be judged as it stands."""
    eos = tokenizer.eos_token_id
    if eos not in ids:
        return ids
    end = len(ids) - ids[::-1].index(eos)
    return ids[:end] if not tokenizer.decode(ids[end:]).strip() else ids


def render(
    contexts: list[str | list[Message]],
    origins: list[str],
    tokenizer: "PreTrainedTokenizerBase",
    continued: bool,
    template: str | None = None,
    assistant_mask: bool = False,
) -> list[Rendered]:
    """Tokens of each context. `continued` asks the template to open the assistant's turn."""
    if not contexts:
        return []
    if isinstance(contexts[0], str):
        return [Rendered(ids) for ids in _plain(contexts, tokenizer)]
    require_template(tokenizer)

    def apply(conversations: list[Any]) -> Any:
        return tokenizer.apply_chat_template(
            conversations,
            chat_template=template,
            add_generation_prompt=continued,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=assistant_mask,
            tokenizer_kwargs={"verbose": False},
        )

    output = _naming_the_row(apply, contexts, origins)
    masks = output["assistant_masks"] if assistant_mask else [None] * len(contexts)
    return [Rendered(ids, mask) for ids, mask in zip(output["input_ids"], masks, strict=True)]


def _naming_the_row(apply: Callable[[list[Any]], Any], contexts: list[Any], origins: list[str]) -> Any:
    from jinja2 import TemplateError

    try:
        return apply(contexts)
    except (TemplateError, TypeError, KeyError):
        # A template may refuse a conversation (roles that do not alternate, say). One by one finds which.
        for context, origin in zip(contexts, origins, strict=True):
            try:
                apply([context])
            except (TemplateError, TypeError, KeyError) as error:
                raise DataError(f"{origin}: the chat template refuses these messages: {error}") from error
        raise


def _plain(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """The tokenizer's own encoding, with its BOS once and without an EOS that it may append."""
    encoded = tokenizer(texts, verbose=False)["input_ids"]  # lengths are checked by `truncate` and the engines
    return [_once(ids, text, tokenizer) for ids, text in zip(encoded, texts, strict=True)]


def _once(ids: list[int], text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[:2] == [bos, bos]:  # the text brought its own
        ids = ids[1:]
    if eos is not None and len(ids) > 1 and ids[-1] == eos and not text.endswith(tokenizer.eos_token):
        ids = ids[:-1]
    return ids


def _text(context: str | list[Message], tokenizer: "PreTrainedTokenizerBase") -> str:
    if isinstance(context, str):
        return context
    return tokenizer.apply_chat_template(context, add_generation_prompt=True, tokenize=False)


def require_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    if tokenizer.chat_template is None:
        raise DataError(
            f"data.chat is true, but the tokenizer of {tokenizer.name_or_path} has no chat template. Set "
            "data.chat=false to work on plain text, or give a template: model.chat_template=FILE (Jinja)."
        )
