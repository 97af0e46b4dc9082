"""A step's numbers as they were logged, beside those of the same step trained again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

_FIRST = ("loss", "grad_norm")


@dataclass(frozen=True, slots=True)
class Pair:
    """One number; NaN where it was not there."""

    name: str
    logged: float
    replayed: float

    @property
    def same(self) -> bool:
        """To the last bit."""
        return self.logged == self.replayed or (math.isnan(self.logged) and math.isnan(self.replayed))

    @property
    def difference(self) -> float:
        return 0.0 if self.same else abs(self.replayed - self.logged)

    def close(self, tolerance: float) -> bool:
        """Whether they differ by no more than `tolerance` of the logged number, or of 1 where that is smaller."""
        return self.same or self.difference <= tolerance * max(1.0, abs(self.logged))


def table(pairs: Sequence[Pair], tolerance: float) -> Table:
    """Loss and gradient norm first."""
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    drawn.add_column("")
    for heading in ("logged", "replayed", "difference"):
        drawn.add_column(heading, justify="right")
    for pair in sorted(pairs, key=lambda pair: (pair.name not in _FIRST, pair.name)):
        difference = "0" if pair.same else f"{pair.difference:.1e}"
        style = "" if pair.close(tolerance) else "red"
        drawn.add_row(pair.name, f"{pair.logged:.9g}", f"{pair.replayed:.9g}", difference, style=style)
    return drawn


def verdict(pairs: Sequence[Pair], tolerance: float) -> str:
    """In one sentence."""
    apart = [pair for pair in pairs if not pair.close(tolerance)]
    if apart:
        worst = max(apart, key=lambda pair: (math.isnan(pair.difference), pair.difference))
        return (
            f"{len(apart)} of {len(pairs)} numbers differ by more than {tolerance:g}; the furthest is {worst.name}, by "
            f"{worst.difference:.1e}"
        )
    if all(pair.same for pair in pairs):
        return f"all {len(pairs)} numbers are the same to the last bit"
    worst = max(pairs, key=lambda pair: pair.difference)
    exact = sum(pair.same for pair in pairs)
    return (
        f"equal within {tolerance:g}: {exact} of {len(pairs)} numbers are the same to the last bit, and the "
        f"furthest is {worst.name}, by {worst.difference:.1e}"
    )
