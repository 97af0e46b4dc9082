"""The order in which prompts are drawn: every prompt once per epoch, each epoch in its own order, resumable."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from rlpipe.data.flow import Prompt
from rlpipe.data.records import DataError


class PromptCursor:
    """Draws prompts in an order that depends on the run seed and the epoch alone.

    The order is a sort by hash, so it is the same for every Python and NumPy version. A draw that reaches the end of
    an epoch goes on in the next.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise DataError("data: there are no training prompts.")
        self._prompts = prompts
        self._seed = seed
        self._order: list[int] = []
        self._start(epoch=0, position=0)

    def draw(self, count: int) -> list[tuple[int, Prompt]]:
        """The next `count` (epoch, prompt) pairs."""
        return [self._next() for _ in range(count)]

    def prompt(self, prompt_id: str) -> Prompt:
        """The prompt of this id. Raises KeyError."""
        return self._by_id[prompt_id]

    def state(self) -> dict[str, Any]:
        """Where the cursor stands, as JSON-able values."""
        return {"epoch": self._epoch, "position": self._position, "seed": self._seed, "prompts": self._digest}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. The prompts must be the same ones."""
        if (state["seed"], state["prompts"]) != (self._seed, self._digest):
            raise DataError(
                "The prompts or the run seed are not those of the checkpoint, so its position in them means nothing. "
                "Resume with the same data, tokenizer and seed, or start a new run."
            )
        self._start(state["epoch"], state["position"])

    def _start(self, epoch: int, position: int) -> None:
        if not self._order or epoch != self._epoch:
            self._epoch = epoch
            self._order = sorted(range(len(self._prompts)), key=self._rank)
        self._position = position

    def _rank(self, index: int) -> tuple[bytes, int]:
        return hashlib.blake2b(f"{self._seed}/{self._epoch}/{index}".encode(), digest_size=8).digest(), index

    def _next(self) -> tuple[int, Prompt]:
        if self._position == len(self._order):
            self._start(self._epoch + 1, 0)
        prompt = self._prompts[self._order[self._position]]
        self._position += 1
        return self._epoch, prompt

    @cached_property
    def _by_id(self) -> dict[str, Prompt]:
        return {prompt.prompt_id: prompt for prompt in self._prompts}

    @cached_property
    def _digest(self) -> str:
        return hashlib.blake2b("/".join(p.prompt_id for p in self._prompts).encode(), digest_size=8).hexdigest()
