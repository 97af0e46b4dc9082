"""How often what was lost is started again, and how long to rest before."""

from rlpipe.runtime.handle import GivenUp

FIRST_REST_SECONDS = 1.0
"""Before the second attempt in a row; each further one waits twice as long."""


def rest_before(attempt: int) -> float:
    """Seconds; attempts in a row count from 1, which begins at once."""
    return FIRST_REST_SECONDS * 2 ** (attempt - 2) if attempt > 1 else 0.0


class Losses:
    """How often in a row, without a step in between, what trains was lost."""

    def __init__(self, what: str, most: int, key: str = "train.max_restarts") -> None:
        """`what`, for people: `SFT training was`. `most`, and where a person sets it: a key of the recipe, an
        option."""
        self.in_a_row, self.most = 0, most
        self._what, self._key, self._step = what, key, 0

    def add(self, fault: Exception, step: int) -> None:
        """Another loss, `step` being the last step there was. Raises `GivenUp` that names `fault` if it is one too
        many."""
        self.in_a_row = self.in_a_row + 1 if step == self._step else 1
        self._step = step
        if self.in_a_row > self.most:
            raise GivenUp(
                f"{self._what} lost {self.in_a_row} times without a step in between; {self._key} is "
                f"{self.most}. The last fault: {fault}"
            ) from fault

    def __str__(self) -> str:
        return f"{self.in_a_row} of {self.most} in a row"
