"""What a study shows, made from what lies in its folder: curves.csv, study.md and study.svg."""

import csv
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlpipe.data.storage import Storage
from rlpipe.observe.metrics import Label
from rlpipe.observe.study import chart, measures, results, table
from rlpipe.observe.study.measures import Point
from rlpipe.observe.study.results import Results
from rlpipe.recipe.resolved import FILE
from rlpipe.recipe.study_plan import Plan, PlannedCell, digest_of

CURVES, PAGE, DRAWING = "curves.csv", "study.md", "study.svg"
DRAWN = ("evaluation/accuracy", "evaluation/reward", "heldout_loss", "reward", "loss")
"""What is drawn unless the study's `metrics` begin with something else: the first that there is a curve of."""


def write(plan: Plan, folder: Path, of_any_recipe: bool = False) -> list[Path]:
    """Write all three again, from the cells that are finished; returns the files. A row from another recipe than the
    plan's counts only if `of_any_recipe`."""
    found = Results(folder)
    done = [c for c in plan.cells if found.finished(c.name, c.digest) or (of_any_recipe and c.name in found.rows)]
    points = {cell.name: curves(run_dir(folder, cell.name), found.rows[cell.name][results.RECIPE]) for cell in done}
    storage = Storage(folder)
    storage.write(CURVES, _curves(plan.axes, done, points).encode())
    drawing = _drawing(plan, done, points)
    if drawing:
        storage.write(DRAWING, drawing.encode())
    storage.write(PAGE, _page(plan, found, done, bool(drawing)).encode())
    return [folder / name for name in (CURVES, PAGE, *([DRAWING] if drawing else []))]


def run_dir(folder: Path, cell: str) -> Path:
    """Where a cell runs."""
    return folder / "cells" / cell


def curves(directory: Path, digest: str) -> list[Point]:
    """The curves of a cell; none where its directory is gone, or holds a run of another recipe."""
    return measures.curves(directory) if ran(directory) == digest else []


def ran(directory: Path) -> str | None:
    """The digest of the recipe that a run directory holds a run of."""
    recipe = directory / FILE
    return digest_of(recipe.read_text(encoding="utf-8")) if recipe.is_file() else None


def _curves(axes: Sequence[str], cells: Sequence[PlannedCell], points: Mapping[str, Sequence[Point]]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["cell", *axes, *Point._fields])
    for cell in cells:
        rows.writerows([cell.name, *cell.cell.axes.values(), *point] for point in points[cell.name])
    return text.getvalue()


def _drawing(plan: Plan, cells: Sequence[PlannedCell], points: Mapping[str, Sequence[Point]]) -> str:
    known = {point.metric for cell in cells for point in points[cell.name]}
    metric = next((name for name in (*plan.study.metrics, *DRAWN) if name in known), None)
    if metric is None:
        return ""
    repeats: dict[str, list[list[Point]]] = {}
    for cell in cells:
        curve = [p for p in points[cell.name] if p.metric == metric and math.isfinite(p.value)]
        repeats.setdefault(_label(plan, cell), []).extend([curve] if curve else [])
    lines = {name: chart.band(curves) for name, curves in repeats.items()}
    about = table.about_metric(metric)
    return chart.draw({name: line for name, line in lines.items() if line}, _title(about), about.number, _unit(plan))


def _label(plan: Plan, cell: PlannedCell) -> str:
    return ", ".join(cell.cell.axes[axis] for axis in plan.compared) or plan.study.name


def _title(about: Label) -> str:
    return about.title[:1].upper() + about.title[1:] + (f" ({about.unit})" if about.unit else "")


def _unit(plan: Plan) -> str:
    bands = f"; band: least to most over {plan.study.repeat_over}" if plan.study.repeat_over else ""
    return f"samples seen{bands}"


def _page(plan: Plan, found: Results, done: Sequence[PlannedCell], drawn: bool) -> str:
    rows = [found.rows[cell.name] for cell in done]
    over = plan.study.repeat_over
    spread = f" Figures are mean ± sample standard deviation over `{over}`; n is how many." if over else ""
    parts = [
        f"# {plan.study.name}",
        f"Recipe `{plan.study.recipe}`, {len(done)} of {len(plan.cells)} cells finished.{spread}",
        table.markdown(rows, plan.axes, plan.compared) if rows else "",
        f"![curves]({DRAWING})" if drawn else "",
        f"Made by `rlpipe study {shlex.quote(plan.file.name)}`. One row per cell stands in `{results.NAME}`, every "
        f"metric over time in `{CURVES}`.",
    ]
    unfinished = [cell.name for cell in plan.cells if cell not in done]
    parts += [f"Not finished: {', '.join(unfinished)}."] if unfinished else []
    return "\n\n".join(part for part in parts if part) + "\n"
