"""Every cell's recipe, read and checked before the first one runs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlpipe.recipe import load
from rlpipe.recipe.errors import Place, Problem, RecipeError, in_override
from rlpipe.recipe.resolved import to_yaml
from rlpipe.recipe.shipped import find
from rlpipe.recipe.study import Cell, Change, Study, StudyFile

NAMED = 3
"""Cells that a problem names before it says how many more have it."""


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A cell with the `key=value` changes it is run with, and what its resolved recipe hashes to."""

    cell: Cell
    changes: tuple[str, ...]
    digest: str

    @property
    def name(self) -> str:
        return self.cell.name


@dataclass(frozen=True, slots=True)
class Plan:
    """What a study would run."""

    study: Study
    file: Path
    recipe: Path
    cells: tuple[PlannedCell, ...]
    missing: tuple[Problem, ...]
    """Local files its recipes name that are not here: nothing runs without them."""

    @property
    def axes(self) -> list[str]:
        return list(self.study.grid)

    @property
    def compared(self) -> list[str]:
        """The axes whose values stand beside each other: all but the one that repeats."""
        return [axis for axis in self.axes if axis != self.study.repeat_over]


def plan(found: StudyFile, typed: Sequence[str] = ()) -> Plan:
    """The study with its cells checked; `typed` are changes for every cell from the command line. Raises RecipeError
    with the mistakes of all cells."""
    recipe = find(found.study.recipe, found.root.nearest(("recipe",)).place, "recipe")
    common = [*found.common(), *(Change(text, in_override(text)) for text in typed)]
    cells, wrong, missing = [], _Gathered(), _Gathered()
    every = found.cells()
    for cell in every:
        changes = [*common, *cell.changes]
        texts = tuple(change.text for change in changes)
        try:
            loaded = load.read(recipe, texts)
        except RecipeError as error:
            wrong.add(cell.name, error.problems, changes)
            continue
        missing.add(cell.name, loaded.missing, changes)
        cells.append(PlannedCell(cell, texts, digest_of(to_yaml(loaded.recipe))))
    if wrong.cells:
        raise RecipeError(wrong.problems(len(every)))
    return Plan(found.study, found.file, recipe, tuple(cells), tuple(missing.problems(len(every))))


def digest_of(resolved: str) -> str:
    """Tells whether two resolved recipes, as a run directory's recipe.yaml holds them, are the same."""
    return hashlib.sha256(resolved.encode()).hexdigest()[:12]


class _Gathered:
    """Problems of cells: the same one of many cells is told once, at the study's line that it comes from."""

    def __init__(self) -> None:
        self.cells: dict[tuple[Place, str, str], list[str]] = {}

    def add(self, cell: str, problems: Sequence[Problem], changes: Sequence[Change]) -> None:
        lines = {in_override(change.text).source: change.place for change in changes}
        for problem in problems:
            place = lines.get(problem.place.source, problem.place)
            self.cells.setdefault((place, problem.key, problem.message), []).append(cell)

    def problems(self, count: int) -> list[Problem]:
        return [
            Problem(place, key, f"{message} ({_where(cells, count)})")
            for (place, key, message), cells in self.cells.items()
        ]


def _where(cells: Sequence[str], count: int) -> str:
    if len(cells) == count > 1:
        return "in every cell"
    more = f" and {len(cells) - NAMED} more" if len(cells) > NAMED else ""
    return f"in cell{'s' if len(cells) > 1 else ''} {', '.join(cells[:NAMED])}{more}"
