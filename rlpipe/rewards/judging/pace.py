"""Rate limits: when the next request may begin."""


class Pace:
    """Spreads requests evenly, so that no minute has more of them, or of their tokens, than the limit and one request
    beyond it. Times are seconds of any clock."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None):
        self._seconds_per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._requests_free = self._tokens_free = 0.0

    def book(self, tokens: float, now: float) -> float:
        """Take the next place, for a request of about so many tokens; seconds to wait for it."""
        start = max(now, self._requests_free, self._tokens_free)
        self._requests_free = start + self._seconds_per_request
        self._tokens_free = start + tokens * self._seconds_per_token
        return start - now

    def correct(self, tokens: float) -> None:
        """A request took so many tokens more than it was booked for; fewer if negative."""
        self._tokens_free += tokens * self._seconds_per_token
