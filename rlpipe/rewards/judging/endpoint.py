"""A judge behind an OpenAI-compatible server: OpenAI's own, vLLM's, or any that speaks as they do.

    POST url/chat/completions   {"model": …, "messages": […], "max_tokens": 8, "logprobs": true, "top_logprobs": 20}

Its preference is read from the log-probabilities of the answer's first token: the options' share of them. Where the
server gives none it is read from the text, as 1 or 0; this is told once, and counted (`Usage.without_probabilities`).

Kinds of failure: `outside_choice`, `too_long`, and those of an endpoint (`rewards.reward`). Too many requests (429),
faults of the server (5xx), late answers and broken connections are tried again until the question's deadline.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from rlpipe.data.flow import Failure
from rlpipe.recipe.judging import EndpointJudge
from rlpipe.rewards.attempts import without_key
from rlpipe.rewards.judging.completion import read_answer
from rlpipe.rewards.judging.completions import Completions
from rlpipe.rewards.judging.dialect import HARD
from rlpipe.rewards.judging.loop_thread import Closed, LoopThread
from rlpipe.rewards.judging.question import Choice, Question
from rlpipe.rewards.judging.reading import by_probability, by_text, check_options
from rlpipe.rewards.judging.usage import Usage
from rlpipe.rewards.reward import Allowance, RewardUnusable


class Endpoint:
    """One client for all who ask, in a thread of its own."""

    def __init__(self, judge: EndpointJudge, least_mass: float = 0.1):
        """`least_mass`: an answer whose options have less of the probability is a failure."""
        self.name = f"{judge.model} at {urlsplit(judge.url).netloc}"
        self._judge, self._least_mass = judge, least_mass
        self._thread = LoopThread(f"judge {self.name}")
        self._completions = Completions(judge, self.name)

    def start(self) -> None: ...

    def ready(self) -> None:
        self._completions.key()

    def ask(self, questions: Sequence[Question], allowance: Allowance) -> list[Choice | Failure]:
        """Each question has the recipe's deadline, or what is left of the allowance, from when its turn comes. Raises
        `RewardUnusable` where options cannot be told apart."""
        try:
            for options in {question.options for question in questions}:
                check_options(options)
        except ValueError as error:
            raise RewardUnusable(f"the judge {self.name}: {error}") from None
        seconds = allowance.share(self._judge.deadline, 1)
        try:
            return self._thread.run(self._all(questions, seconds))
        except Closed:
            return [Failure("unreachable", f"the judge {self.name} was closed")] * len(questions)

    def usage(self) -> Usage:
        """Of everything that was asked so far."""
        return self._completions.usage

    def close(self) -> None:
        self._thread.close(self._completions.close())

    async def _all(self, questions: Sequence[Question], seconds: float) -> list[Choice | Failure]:
        return list(await asyncio.gather(*(self._one(question, seconds) for question in questions)))

    async def _one(self, question: Question, seconds: float) -> Choice | Failure:
        said = await self._completions.ask(question, seconds)
        outcome = said if isinstance(said, Failure) else self._read(said, question.options)
        key = self._completions.key()
        if isinstance(outcome, Choice):
            return replace(outcome, said=without_key(outcome.said, key))
        self._completions.count(Usage(failures={outcome.kind: 1}))
        return Failure(outcome.kind, without_key(outcome.message, key))

    def _read(self, said: object, options: Sequence[str]) -> Choice | Failure:
        answer = read_answer(said)
        if isinstance(answer, Failure):
            return answer
        if answer.positions:
            return by_probability(answer, options, self._least_mass)
        if self._judge.probabilities:
            self._completions.warn(HARD)
        choice = by_text(answer, options, self._judge.max_tokens)
        if isinstance(choice, Choice):
            self._completions.count(Usage(without_probabilities=1))
        return choice
