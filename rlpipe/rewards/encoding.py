"""How a group becomes the tokens of a reward model: as they were sampled, or through text.

Where tokenizer and chat template are the policy's own, the model gets the very tokens. Another one gets the prompt's
messages and the decoded response, rendered by its own template and encoded once; a plain-text prompt as its text.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rlpipe.data.chat import as_generated, ended, joined, render
from rlpipe.data.flow import FinishReason, Group, Tokens
from rlpipe.rewards.reward import RewardUnusable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Encode = Callable[[Group], list[Tokens]]
"""One whole sequence (prompt and response) per response of a group."""


def encoder(
    name: str, policy: "PreTrainedTokenizerBase", own: "PreTrainedTokenizerBase", chat: bool
) -> tuple[Encode, str]:
    """How reward `name` with the tokenizer `own` gets groups of the policy's, and a sentence that says so.

    `chat` says whether prompts are conversations. Raises `RewardUnusable` if `own` cannot render them.
    """
    differs = difference(policy, own, chat)
    if differs is None:
        return as_sampled, f"reward `{name}`: its tokens are the policy's, so it gets them as they were sampled."
    if chat and own.chat_template is None:
        raise RewardUnusable(
            f"reward `{name}`: the tokenizer of {own.name_or_path} has another vocabulary than the policy's and no "
            "chat template to render the conversations with. Add a chat_template.jinja to its folder."
        )
    return Converted(own), f"reward `{name}`: its {differs} is not the policy's, so responses go to it as text."


def difference(policy: "PreTrainedTokenizerBase", own: "PreTrainedTokenizerBase", chat: bool) -> str | None:
    """What keeps the token ids of the one from meaning the same to the other; None if nothing does."""
    if policy.get_vocab() != own.get_vocab():
        return "vocabulary"
    return "chat template" if chat and policy.chat_template != own.chat_template else None


def as_sampled(group: Group) -> list[Tokens]:
    """Prompt and response, token by token as the engine had them."""
    return [np.concatenate([t.prompt_tokens, t.response_tokens]) for t in group.trajectories]


class Converted:
    """Through text, into the tokens of another tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer

    def __call__(self, group: Group) -> list[Tokens]:
        messages, text = group.prompt.messages, group.prompt.text
        wholes = [joined(text if messages is None else messages, completion) for completion in group.completions]
        rendered = render(wholes, [group.group_id] * len(wholes), self._tokenizer, continued=False)
        finished = [t.finish_reason is FinishReason.STOP for t in group.trajectories]
        ids = [self._ended(r.ids, done) for r, done in zip(rendered, finished, strict=True)]
        return [np.asarray(row, dtype=np.int32) for row in ids]

    def _ended(self, ids: list[int], finished: bool) -> list[int]:
        """With the end of the response where the policy wrote one, and without where it was cut off."""
        ids = as_generated(ids, self._tokenizer)
        if finished:
            return ended(ids, self._tokenizer)
        return ids[:-1] if ids[-1:] == [self._tokenizer.eos_token_id] else ids
