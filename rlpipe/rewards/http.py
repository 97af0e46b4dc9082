"""An endpoint that scores. One request per group, or for up to `groups_per_request` of those that wait:

    POST url   {"prompts": […], "completions": […], "answer": […], …every column of the row}
    answer     {"rewards": [1.0, null, …]}     one per completion; null: does not apply

Too many requests (429), a fault of the server (5xx), a connection that fails and an attempt that takes too long are
tried again, with growing pauses or as Retry-After says, until the request's deadline. Then they are failures.
"""

import itertools
import threading
import time
from collections.abc import Sequence

import httpx

from rlpipe.data.flow import Failure, Group
from rlpipe.recipe.rewards import HttpReward
from rlpipe.rewards import attempts
from rlpipe.rewards.attempts import Refused, Retry
from rlpipe.rewards.endpoint import read_rewards, request_body
from rlpipe.rewards.reward import Allowance, Component


class Http:
    """Asks for whole groups at once."""

    def __init__(self, recipe: HttpReward):
        self.name = recipe.name
        self.weight = recipe.weight
        self._recipe = recipe
        self._client = httpx.Client()
        self._closed = threading.Event()

    def start(self) -> None: ...

    def ready(self) -> None:
        self._token()

    def takes(self, waiting: Sequence[Group]) -> int:
        return min(len(waiting), self._recipe.groups_per_request)

    def score_all(self, groups: Sequence[Group], allowance: Allowance) -> list[list[Component]]:
        rows = sum(len(group.completions) for group in groups)
        deadline = time.monotonic() + allowance.share(self._recipe.deadline, 1)
        text = self._ask(request_body(groups), deadline)
        answer = text if isinstance(text, Failure) else read_rewards(text, rows)
        answers = iter([answer] * rows if isinstance(answer, Failure) else answer)
        return [[self._safe(next(answers)) for _ in group.completions] for group in groups]

    def close(self) -> None:
        self._closed.set()
        self._client.close()

    def _ask(self, body: bytes, deadline: float) -> bytes | Failure:
        """The answer of the first attempt that gets one."""
        for attempt in itertools.count(1):
            try:
                return self._attempt(body, deadline)
            except Refused as refused:
                return refused.failure()
            except Retry as problem:
                pause = attempts.pause(attempt, problem.after)
                if time.monotonic() + pause >= deadline or self._closed.wait(pause):
                    return problem.given_up(attempt, self._recipe.deadline)

    def _attempt(self, body: bytes, deadline: float) -> bytes:
        """Raises `Retry` where another attempt may go better, and `Refused` where none does."""
        headers = attempts.headers(self._token())
        seconds = max(min(self._recipe.timeout, deadline - time.monotonic()), 0.001)
        until = time.monotonic() + seconds
        with (
            attempts.faults(seconds),
            self._client.stream("POST", self._recipe.url, content=body, headers=headers, timeout=seconds) as response,
        ):
            text = _read(response, until)
        attempts.check_status(response.status_code, text, response.headers.get("retry-after", ""))
        return text

    def _token(self) -> str:
        return attempts.key_in(self._recipe.token_env, "token_env", f"reward {self.name!r}")

    def _safe(self, component: Component) -> Component:
        if not isinstance(component, Failure):
            return component
        return Failure(component.kind, attempts.without_key(component.message, self._token()))


def _read(response: httpx.Response, until: float) -> bytes:
    """The body. A server that sends it drop by drop is late, too; one without end is cut short."""
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if time.monotonic() > until:
            raise httpx.ReadTimeout("the body took too long")
        if len(body) > attempts.LARGEST_ANSWER:
            break
    return bytes(body)
