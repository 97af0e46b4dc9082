"""`rlpipe chat`: a result in the terminal, answering as it writes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from transformers import GenerationConfig, TextStreamer

from rlpipe.data.chat import Message, render
from rlpipe.models import virtual_tokens
from rlpipe.models.folders import is_adapter
from rlpipe.models.load import ModelError, load_causal_lm, load_tokenizer, resolve_dtype
from rlpipe.models.trained_adapters import put_on, recorded_base
from rlpipe.pipelines.results import find, find_adapter, find_model
from rlpipe.recipe.model import PretrainedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Write = Callable[[str], None]
"""Takes an answer piece by piece."""
FORGET = "/new"


@dataclass(frozen=True)
class Style:
    """How answers are drawn; nothing else changes the model's distribution."""

    temperature: float
    """0 takes the likeliest token."""
    max_new_tokens: int
    seed: int


class Chat:
    """A conversation where the tokenizer has a chat template; else each text is continued by itself."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", style: Style) -> None:
        self._model, self._tokenizer, self._style = model, tokenizer, style
        self._messages: list[Message] = []
        self._ends = _ends(model, tokenizer)
        # The folder's own would fill in what is not set below: top-p, repetition penalty.
        model.generation_config = GenerationConfig(pad_token_id=tokenizer.pad_token_id, eos_token_id=self._ends)
        torch.manual_seed(style.seed)

    def forget(self) -> None:
        """Begin a new conversation."""
        self._messages = []

    def answer(self, said: str, write: Write) -> str:
        """Raises `ModelError` if the conversation has become longer than the model's context."""
        message = {"role": "user", "content": said}
        context = said if self._tokenizer.chat_template is None else [*self._messages, message]
        [rendered] = render([context], ["the conversation"], self._tokenizer, continued=True)
        answer = self._generate(rendered.ids, write)
        self._messages += [message, {"role": "assistant", "content": answer}]
        return answer

    @torch.inference_mode()
    def _generate(self, ids: list[int], write: Write) -> str:
        taken = virtual_tokens.number_in(self._model) if isinstance(self._model, PeftModel) else 0
        room = self._model.config.get_text_config().max_position_embeddings - taken - len(ids)
        if room < 1:
            raise ModelError(f"{len(ids)} tokens leave no room in the model's context; {FORGET} begins again")
        tokens = torch.tensor([ids], device=self._model.device)
        streamer = _Streamer(self._tokenizer, write)
        style = self._style
        drawn = {"do_sample": True, "temperature": style.temperature, "top_k": 0} if style.temperature else {}
        self._model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=min(style.max_new_tokens, room),
            streamer=streamer,
            **drawn,
        )
        return streamer.text


class _Streamer(TextStreamer):
    """Hands over whole characters as they come, and keeps them."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", write: Write) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        self._write(text)


def open_chat(named: str, adapter: str | None, style: Style) -> Chat:
    """A model, an adapter on its base, or a model with an adapter. Raises `ModelError`."""
    folder = find(named)
    adapters = [find_adapter(adapter)] if adapter is not None else []
    if is_adapter(folder):
        if adapters:
            raise ModelError(f"{folder} is an adapter itself; give the model that --adapter belongs to")
        adapters, folder = [folder], find_model(recorded_base([folder]))
    model = load_causal_lm(PretrainedModel(path=str(folder)), str(folder), resolve_dtype("auto"))
    if adapters:
        model = put_on(model, folder, adapters)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return Chat(model, _tokenizer([*adapters, folder]), style)


def talk(chat: Chat, said: Iterable[str], write: Write) -> None:
    """Answer each text, with a line end after each answer."""
    for text in said:
        if text.strip() == FORGET:
            chat.forget()
        elif text.strip():
            chat.answer(text, write)
            write("\n")


def _tokenizer(folders: list[Path]) -> "PreTrainedTokenizerBase":
    """The first that is there: an adapter's own may have another chat template than its base."""
    folder = next(folder for folder in folders if (folder / "tokenizer_config.json").is_file())
    return load_tokenizer(PretrainedModel(path=str(folder)), str(folder))


def _ends(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """What ends an answer: the tokenizer's end of sequence, and what the model's folder names besides."""
    named = model.generation_config.eos_token_id
    named = named if isinstance(named, list) else [named]
    return sorted({token for token in (tokenizer.eos_token_id, *named) if token is not None})
