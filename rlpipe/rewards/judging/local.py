"""A judge on engines of this run: what it prefers is read from the probabilities of the options.

Each option is put behind the question, and the engine says how probable its tokens are, through the forward pass that
serves requests. Nothing is sampled, so the answer is exact and the same every time, and one that is no option cannot
come. Whether the judge would give one shows in `Choice.mass`.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from rlpipe.data.chat import render
from rlpipe.data.flow import Failure, Tokens
from rlpipe.rewards.fleet import Fleet
from rlpipe.rewards.judging.question import Choice, Question
from rlpipe.rewards.replicas import Replica
from rlpipe.rewards.reward import Allowance, RewardUnusable
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.handle import Within

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Local:
    """See above."""

    def __init__(
        self, name: str, fleet: Fleet, tokenizer: "PreTrainedTokenizerBase", max_length: int, least_mass: float
    ) -> None:
        """`max_length`: tokens of a question with its answer."""
        self.name, self._fleet, self._tokenizer = name, fleet, tokenizer
        self._max_length, self._least_mass = max_length, least_mass

    def start(self) -> None: ...

    def ready(self) -> None:
        """The runtime that started the engines has waited for them. A template is needed for questions."""
        if self._tokenizer.chat_template is None:
            raise RewardUnusable(
                f"judge {self.name}: its tokenizer has no chat template to put questions in; add a "
                "chat_template.jinja to its folder"
            )

    def ask(self, questions: Sequence[Question], allowance: Allowance) -> list[Choice | Failure]:
        asked = [self._sequences(question) for question in questions]
        fitting = [tokens for sequences in asked if self._fit(sequences) for tokens in sequences]
        answer = self._logprobs(fitting, allowance)
        if isinstance(answer, Failure):
            return [answer if self._fit(sequences) else self._too_long(sequences) for sequences in asked]
        logprobs = iter(answer)
        found: list[Choice | Failure] = []
        for question, sequences in zip(questions, asked, strict=True):
            if self._fit(sequences):
                ends = [self._option_tokens(option) for option in question.options]
                found.append(self._choice(question, [float(next(logprobs)[-len(end) :].sum()) for end in ends]))
            else:
                found.append(self._too_long(sequences))
        return found

    def usage(self) -> None:
        return None

    def close(self) -> None: ...

    def _logprobs(self, sequences: list[Tokens], allowance: Allowance) -> list[np.ndarray] | Failure:
        def probe(replica: Replica, within: Within) -> list[np.ndarray]:
            return replica[0].call(within, RolloutWorker.probe, sequences).result()

        return self._fleet.ask(probe, allowance) if sequences else []

    def _choice(self, question: Question, logprobs: Sequence[float]) -> Choice | Failure:
        mass = min(1.0, sum(map(math.exp, logprobs)))
        if mass < self._least_mass or mass == 0.0:
            options = " or ".join(question.options)
            return Failure("outside_choice", f"{options} have a probability of {mass:.2g} together; it would say else")
        most = max(logprobs)
        weights = [math.exp(logprob - most) for logprob in logprobs]
        return Choice(tuple(weight / sum(weights) for weight in weights), mass)

    def _sequences(self, question: Question) -> list[Tokens]:
        """The question with each of its options."""
        rendered = render([list(question.messages)], [question.question_id], self._tokenizer, continued=True)[0]
        ends = [self._option_tokens(option) for option in question.options]
        return [np.asarray([*rendered.ids, *end], np.int32) for end in ends]

    def _option_tokens(self, option: str) -> list[int]:
        return self._options.setdefault(option, self._tokenizer.encode(option, add_special_tokens=False))

    @cached_property
    def _options(self) -> dict[str, list[int]]:
        return {}

    def _fit(self, sequences: Sequence[Tokens]) -> bool:
        return max(map(len, sequences)) <= self._max_length

    def _too_long(self, sequences: Sequence[Tokens]) -> Failure:
        longest = max(map(len, sequences))
        return Failure("too_long", f"{longest} tokens; the judge takes {self._max_length} at most")
