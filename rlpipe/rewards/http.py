"""An endpoint that scores. One request per group, or for up to `groups_per_request` of those that wait:

    POST url   {"prompts": […], "completions": […], "answer": […], …every column of the row}
    answer     {"rewards": [1.0, null, …]}     one per completion; null: does not apply

Too many requests (429), a fault of the server (5xx), a connection that fails and an attempt that takes too long are
tried again, with growing pauses or as Retry-After says, until the request's deadline. Then they are failures.
"""

import itertools
import os
import threading
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime

import httpx

from rlpipe.data.flow import Failure, Group
from rlpipe.recipe.rewards import HttpReward
from rlpipe.rewards.endpoint import Retry, read_rewards, request_body
from rlpipe.rewards.reward import Allowance, Component, RewardUnusable

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
LARGEST_ANSWER = 16 << 20


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
            except Retry as problem:
                pause = problem.after or min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
                if time.monotonic() + pause >= deadline or self._closed.wait(pause):
                    tried = f"{attempt} attempt{'s' * (attempt > 1)}"
                    return Failure(problem.kind, f"{problem} ({tried}, deadline={self._recipe.deadline:g})")

    def _attempt(self, body: bytes, deadline: float) -> bytes | Failure:
        """Raises `Retry` where another attempt may go better."""
        seconds = max(min(self._recipe.timeout, deadline - time.monotonic()), 0.001)
        until = time.monotonic() + seconds
        try:
            with self._client.stream(
                "POST", self._recipe.url, content=body, headers=self._headers(), timeout=seconds
            ) as response:
                text = _read(response, until)
        except httpx.TimeoutException:
            raise Retry("deadline", f"no answer within {seconds:.3g} s") from None
        except (httpx.TransportError, RuntimeError) as error:  # RuntimeError: the client was closed
            raise Retry("unreachable", f"{type(error).__name__}: {error}") from None
        except httpx.HTTPError as error:
            return Failure("bad_answer", f"{type(error).__name__}: {error}")
        if response.is_success:
            return text
        says = f"status {response.status_code}: {text.decode(errors='replace')!r:.200}"
        if response.status_code == 429 or response.is_server_error:
            raise Retry("http_status", says, retry_after(response.headers.get("retry-after", "")))
        return Failure("http_status", says)

    def _headers(self) -> dict[str, str]:
        token = self._token()
        return {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})

    def _token(self) -> str:
        name = self._recipe.token_env
        if name and not os.environ.get(name):
            raise RewardUnusable(f"reward {self.name!r}: the environment variable {name} (`token_env`) is not set")
        return os.environ[name] if name else ""

    def _safe(self, component: Component) -> Component:
        """Without the token, should the server have sent it back."""
        token = self._token()
        if not token or not isinstance(component, Failure):
            return component
        return Failure(component.kind, component.message.replace(token, "[token]"))


def _read(response: httpx.Response, until: float) -> bytes:
    """The body. A server that sends it drop by drop is late, too; one without end is cut short."""
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if time.monotonic() > until:
            raise httpx.ReadTimeout("the body took too long")
        if len(body) > LARGEST_ANSWER:
            break
    return bytes(body)


def retry_after(value: str) -> float:
    """Seconds to wait, from the header's number or date; 0 if it says nothing."""
    if value.isdecimal():
        return float(value)
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0
