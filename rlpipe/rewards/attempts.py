"""Asking over HTTP, whatever is asked: the key, which faults are tried again, and after which pause."""

import contextlib
import math
import os
import random
import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import httpx

from rlpipe.data.flow import Failure
from rlpipe.rewards.reward import RewardUnusable

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds, of the pause after the first attempt and of any."""
LARGEST_ANSWER = 16 << 20
"""Bytes of an answer that are read."""


class Retry(Exception):
    """An attempt failed as another may not; `after` is the pause in seconds that the server asks for, or 0."""

    def __init__(self, kind: str, message: str, after: float = 0.0):
        super().__init__(message)
        self.kind, self.after = kind, after

    def given_up(self, attempts: int, deadline: float) -> Failure:
        """It stays so, as the deadline of the recipe leaves no time for another attempt."""
        tried = f"{attempts} attempt{'s' * (attempts > 1)}"
        return Failure(self.kind, f"{self} ({tried}, deadline={deadline:g})")


class Refused(Exception):
    """This request gets no answer, whenever it is sent; `text` is all that the server says."""

    def __init__(self, kind: str, message: str, text: str = ""):
        super().__init__(message)
        self.kind, self.text = kind, text

    def failure(self) -> Failure:
        return Failure(self.kind, str(self))


@contextlib.contextmanager
def faults(seconds: float) -> Iterator[None]:
    """What goes wrong within the block, in which an attempt of so many seconds is made, is a `Retry` or a `Refused`."""
    try:
        yield
    except (TimeoutError, httpx.TimeoutException):
        raise Retry("deadline", f"no answer within {seconds:.3g} s") from None
    except (httpx.TransportError, RuntimeError) as error:  # RuntimeError: the client was closed
        raise Retry("unreachable", f"{type(error).__name__}: {error}") from None
    except httpx.HTTPError as error:
        raise Refused("bad_answer", f"{type(error).__name__}: {error}") from None


def check_status(status: int, body: bytes, wait: str) -> None:
    """Raises `Retry` or `Refused` unless the status is success; `wait` is the header `Retry-After`, if there is one."""
    if 200 <= status < 300:
        return
    text = body.decode(errors="replace")
    says = f"status {status}: {text!r:.200}"
    if status == 429 or status >= 500:
        raise Retry("http_status", says, retry_after(wait))
    raise Refused("http_status", says, text)


def pause(attempt: int, after: float) -> float:
    """Seconds until the next attempt, when number `attempt` (from 1) failed: `after` if the server says so, else twice
    as long each time. Up to half a pause is added by chance, so that those that failed together come back apart."""
    grown = min(FIRST_PAUSE * 2 ** min(attempt - 1, 16), LONGEST_PAUSE)
    return (after or grown) + random.uniform(0, grown / 2)


def retry_after(value: str) -> float:
    """Seconds to wait, from the header's number or date; 0 if it says nothing."""
    try:
        seconds = float(value)
    except ValueError:
        return _seconds_until(value)
    return seconds if 0 <= seconds < math.inf else 0.0


def _seconds_until(date: str) -> float:
    try:
        return max(parsedate_to_datetime(date).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0


def key_in(variable: str | None, recipe_key: str, owner: str) -> str:
    """The key that this variable of the environment holds; empty where the recipe names none. Raises `RewardUnusable`
    if it is not set, or cannot be sent in a header."""
    if not variable:
        return ""
    key = os.environ.get(variable, "")
    if not key:
        raise RewardUnusable(f"{owner}: the environment variable {variable} (`{recipe_key}`) is not set")
    if not re.fullmatch(r"[!-~]+", key):
        raise RewardUnusable(
            f"{owner}: the environment variable {variable} (`{recipe_key}`) holds spaces, line ends or other "
            "characters that no key has"
        )
    return key


def headers(key: str) -> dict[str, str]:
    return {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})


def without_key(text: str, key: str) -> str:
    """For what is stored, should the server have sent it back."""
    return text.replace(key, "[token]") if key else text
