"""What stands between two turns of the policy, as tokens: the end of its turn, the environment's message, and the
opening of its next turn, all by the tokenizer's own chat template.

The policy's tokens are never rendered again. A conversation with a placeholder in the policy's place is rendered twice,
without the message and with it; what the second has more behind the placeholder is what the message adds. Where a
template rewrites what stands before (as some do with earlier thoughts), that does not reach the policy's own tokens.
"""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from rlpipe.data.chat import require_template
from rlpipe.data.flow import Said, Tokens
from rlpipe.data.records import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACEHOLDER = "rlpipe-turn-of-the-policy"


class TurnMarks:
    """Tokens that continue a conversation. With `chat` false there are no marks: messages are appended as they are."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", chat: bool) -> None:
        """Raises `DataError` for a tokenizer without chat template."""
        if chat:
            require_template(tokenizer)
        self._tokenizer, self._chat = tokenizer, chat
        # Environments say the same few things over and over; a template takes longer than a dictionary.
        self._between = cache(self._render)

    def tokens(self, said: Said, last_token: int) -> Tokens:
        """What follows a turn of the policy that ended with `last_token`, up to where its next turn begins.

        Raises `DataError`, naming the template, if the template cannot be continued by this message.
        """
        ids, ends_turn = self._between(said)
        # The policy has written the mark that ends its turn itself, unless another stop token ended it.
        written = ends_turn and ids[0] == last_token
        return np.asarray(ids[1:] if written else ids, np.int32)

    def _render(self, said: Said) -> tuple[list[int], bool]:
        """(token ids from the end of the policy's words on, whether they begin with a mark that ends its turn)."""
        if not self._chat:
            return self._encoded(said.text), False
        ended, continued = self._after([], said), self._after([said], said)
        if not continued.startswith(ended):
            raise self._refused(
                said, f"it ends a turn with {ended!r}, but has {continued[: len(ended)]!r} there once a message follows"
            )
        if said.text.strip() not in continued:
            raise self._refused(said, "it leaves the message out")
        return self._encoded(continued), bool(ended)

    def _after(self, more: list[Said], said: Said) -> str:
        """What the template writes behind the policy's words, with and without the message."""
        from jinja2 import TemplateError

        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PLACEHOLDER}]
        messages += [{"role": m.role, "content": m.text} for m in more]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=bool(more), continue_final_message=False
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise self._refused(said, f"it says: {error}") from error
        _, placeholder, after = text.rpartition(PLACEHOLDER)
        if not placeholder:
            raise self._refused(said, "it leaves the assistant's turn out")
        return after

    def _encoded(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _refused(self, said: Said, why: str) -> DataError:
        return DataError(
            f"The chat template of {self._tokenizer.name_or_path} cannot go on after a turn of the assistant with a "
            f"message of the role `{said.role}`: {why}. Let the environment speak in another role (`environment.role`, "
            "where it has that key), or give a template that can: model.chat_template=FILE (Jinja)."
        )
