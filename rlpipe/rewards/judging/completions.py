"""Questions to a server, many at once: the attempts of each, within the rate limits, and what they took."""

import asyncio
import itertools
import json
import logging
from typing import Any

import httpx

from rlpipe.data.flow import Failure
from rlpipe.recipe.judging import PATH, EndpointJudge
from rlpipe.rewards import attempts
from rlpipe.rewards.attempts import Refused, Retry
from rlpipe.rewards.judging.completion import parse, tokens_used
from rlpipe.rewards.judging.dialect import MOST, Dialect
from rlpipe.rewards.judging.pace import Pace
from rlpipe.rewards.judging.question import Question
from rlpipe.rewards.judging.usage import Usage, metered

logger = logging.getLogger(__name__)
BYTES_PER_TOKEN = 4
"""A guess, for the rate limit, until the server has counted."""
TOO_LONG = ("context_length_exceeded", "maximum context length")
"""Words of a server, OpenAI's and vLLM's among them, whose model cannot take so long a question."""


class Completions:
    """All in one thread, that of an event loop; `usage` may be read from any."""

    def __init__(self, judge: EndpointJudge, name: str):
        self.usage = Usage()
        self._judge, self._name = judge, name
        self._url = judge.url.rstrip("/") + PATH
        self._client = httpx.AsyncClient(timeout=None)  # an attempt has a limit as a whole
        self._places = asyncio.Semaphore(judge.requests)
        self._pace = Pace(judge.requests_per_minute, judge.tokens_per_minute)
        self._dialect = Dialect(MOST if judge.probabilities else 0)
        self._warned: set[str] = set()

    async def ask(self, question: Question, seconds: float) -> Any | Failure:
        """The JSON of the answer. The seconds begin when the question's turn has come."""
        async with self._places:
            return await self._repeated(question, seconds)

    def count(self, usage: Usage) -> None:
        self.usage += usage

    def warn(self, says: str) -> None:
        """Once."""
        if says and says not in self._warned:
            self._warned.add(says)
            logger.warning("the judge %s %s", self._name, says)

    async def close(self) -> None:
        await self._client.aclose()

    async def _repeated(self, question: Question, seconds: float) -> Any | Failure:
        dialect, until = self._dialect, _now() + seconds
        for attempt in itertools.count(1):
            body = json.dumps(dialect.request(self._judge, question)).encode()
            booked = len(body) / BYTES_PER_TOKEN + self._judge.max_tokens
            until += await self._turn(booked)
            self.count(Usage(requests=1, retries=int(attempt > 1)))
            try:
                answer = await self._attempt(body, min(self._judge.timeout, until - _now()))
            except Refused as refused:
                dialect = dialect.simpler(refused.text)
                if dialect is None:
                    return _final(refused)
            except Retry as problem:
                pause = attempts.pause(attempt, problem.after)
                if _now() + pause >= until:
                    return problem.given_up(attempt, self._judge.deadline)
                await asyncio.sleep(pause)
            else:
                self._learn(dialect)
                return self._metered(answer, booked)

    async def _turn(self, tokens: float) -> float:
        """Wait for what the rate limits leave; the seconds that took, which no deadline counts."""
        seconds = self._pace.book(tokens, _now())
        await asyncio.sleep(seconds)
        return seconds

    async def _attempt(self, body: bytes, seconds: float) -> bytes:
        """Raises `Retry` where another attempt may go better, and `Refused` where the same request does not."""
        headers, seconds = attempts.headers(self.key()), max(seconds, 0.001)
        with attempts.faults(seconds):
            async with (
                asyncio.timeout(seconds),
                self._client.stream("POST", self._url, content=body, headers=headers) as response,
            ):
                text = await _read(response)
        attempts.check_status(response.status_code, text, response.headers.get("retry-after", ""))
        return text

    def key(self) -> str:
        """Raises `RewardUnusable` if there should be one and is not."""
        return attempts.key_in(self._judge.api_key_env, "api_key_env", f"the judge {self._name}")

    def _learn(self, dialect: Dialect) -> None:
        """The server takes what it was asked: ask so from now on, if it has refused what is asked now."""
        if dialect.likeliest <= self._dialect.likeliest:
            self.warn(dialect.says(self._dialect))
            self._dialect = dialect

    def _metered(self, text: bytes, booked: float) -> Any | Failure:
        said = parse(text)
        tokens = tokens_used(said)
        self.count(metered(tokens, self._judge.prices))
        if tokens is not None:
            self._pace.correct(sum(tokens) - booked)
        return said


def _final(refused: Refused) -> Failure:
    too_long = any(words in refused.text for words in TOO_LONG)
    return Failure("too_long", str(refused)) if too_long else refused.failure()


async def _read(response: httpx.Response) -> bytes:
    """The body; one without end is cut short."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > attempts.LARGEST_ANSWER:
            break
    return bytes(body)


def _now() -> float:
    return asyncio.get_running_loop().time()
