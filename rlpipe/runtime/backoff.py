"""How long to rest before what was lost is started again."""

FIRST_REST_SECONDS = 1.0
"""Before the second attempt in a row; each further one waits twice as long."""


def rest_before(attempt: int) -> float:
    """Seconds; attempts in a row count from 1, which begins at once."""
    return FIRST_REST_SECONDS * 2 ** (attempt - 2) if attempt > 1 else 0.0
