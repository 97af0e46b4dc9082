"""A role that does nothing: what processes that host roles import is kept small."""


class Role:
    """Counts its calls."""

    def __init__(self, *_) -> None:
        self.number = 0

    def count(self) -> int:
        self.number += 1
        return self.number
