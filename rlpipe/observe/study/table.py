"""The table of a study: mean and spread over the axis that repeats."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlpipe.observe.metrics import Label, label
from rlpipe.observe.study.results import CELL, RECIPE, Row

AT_THE_END = ("steps", "samples", "step_seconds", "seconds", "peak_memory_gib")
"""What every run costs stands behind what it is worth."""


class Spread(NamedTuple):
    """Mean and sample standard deviation (None of a single value) of n values."""

    mean: float
    deviation: float | None
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and spread; the deviation divides by n - 1. NaN where a value is NaN."""
    if not all(map(math.isfinite, values)):
        return Spread(math.nan, None, len(values))
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def groups(rows: Sequence[Row], compared: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    """Rows that differ only in the repeating axis, by the labels of the other axes."""
    found: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row[axis] for axis in compared)].append(row)
    return dict(found)


def shown_metrics(rows: Sequence[Row], axes: Sequence[str]) -> list[str]:
    """The columns that are figures, without a count of failures where nothing failed."""
    names = [n for row in rows[:1] for n in row if n not in (CELL, RECIPE, *axes, *AT_THE_END)]
    names = [n for n in names if not n.endswith("failures") or any(row[n] not in ("", "0.0") for row in rows)]
    return [n for n in (*names, *AT_THE_END) if any(row.get(n) for row in rows)]


def markdown(rows: Sequence[Row], axes: Sequence[str], compared: Sequence[str]) -> str:
    """One line per group of rows."""
    metrics = shown_metrics(rows, axes)
    heads = [*compared, "n", *map(heading, metrics)]
    lines = [heads, ["---"] * len(compared) + ["--:"] * (len(heads) - len(compared))]
    for labels, members in groups(rows, compared).items():
        lines.append([*labels, str(len(members)), *(text(members, metric) for metric in metrics)])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def text(rows: Sequence[Mapping[str, str]], metric: str) -> str:
    """`91.2% ± 0.8%`; nothing where no row has the metric."""
    values = [float(row[metric]) for row in rows if row.get(metric)]
    if not values:
        return ""
    found, about = spread(values), about_metric(metric)
    deviation = "" if found.deviation is None else f" ± {about.number(found.deviation)}"
    return about.number(found.mean) + deviation


def heading(metric: str) -> str:
    """A metric with its unit: `step time (s)`."""
    about = about_metric(metric)
    return about.title + (f" ({about.unit})" if about.unit else "")


def about_metric(metric: str) -> Label:
    """The label of a metric as studies name it; of what is measured twice, the held-out one says so."""
    if not metric.startswith("evaluation/"):
        return label(metric)
    about = label(metric.removeprefix("evaluation/"))
    return (
        about
        if about.title.startswith(("held-out", "failed held-out"))
        else about._replace(title=f"held-out {about.title}")
    )
