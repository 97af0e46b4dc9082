"""A study: one recipe over a grid of changes, every cell of which is a run.

axis: [value, …]              a recipe key, and what it is set to
axis: {label: [change, …]}    a name, and under each label the changes that make it
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from rlpipe.recipe.base import FolderName, Strict
from rlpipe.recipe.errors import Place
from rlpipe.recipe.tree import Node, Scalar
from rlpipe.recipe.yaml_text import scalar


def _label(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", text):
        raise ValueError(f"`{text}` becomes part of a folder's name; expected letters, digits, `-`, `_`, `.`, `+`")
    return text


Values = Annotated[list[Scalar], Field(min_length=1)]
Labelled = Annotated[dict[Annotated[str, AfterValidator(_label)], list[str]], Field(min_length=1)]


class Study(Strict):
    """What is compared, on which recipe, and what is measured."""

    name: FolderName = "study"
    """Names its folder, runs/NAME."""
    recipe: str
    """The recipe that every cell changes: a file, seen from the study's, or a shipped name."""
    changes: list[str] = []
    """KEY=VALUE changes for every cell, as on the command line; the grid's come after them."""
    grid: Annotated[dict[str, Values | Labelled], Field(min_length=1)]
    """Axes. Every combination of their values is a cell; the last axis varies fastest."""
    exclude: list[dict[str, Scalar]] = []
    """Combinations that are no cells: of each, the values or labels of some axes."""
    repeat_over: str | None = None
    """The axis that repeats the same thing, usually `seed`: the table gives mean and spread over it."""
    metrics: list[str] = []
    """What results.csv holds beside steps, samples, seconds and memory: the last value of `evaluation/NAME` (held-out)
    or of a training metric. All held-out metrics if empty. The first one that has a curve is drawn."""
    samples: PositiveInt | None = None
    """Compare at this many samples: figures are those of the last step within them, where a cell goes on beyond; at the
    end of each cell if absent. Read when a cell ends."""
    debug: bool = False
    """Run each cell with --debug, in one process without Ray: starts faster on a small machine."""
    silence: PositiveFloat = 1800.0
    """Seconds without an event or a line of output after which a cell is taken for hung and ended."""


@dataclass(frozen=True, slots=True)
class Change:
    """KEY=VALUE, and where it was written."""

    text: str
    place: Place


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of the grid's values."""

    name: str
    """Names its run directory: `ppo_seed-0`."""
    axes: dict[str, str]
    """Label or value, by axis."""
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class StudyFile:
    """A valid study, its file, and its lines."""

    study: Study
    file: Path
    root: Node

    @property
    def axes(self) -> list[str]:
        return list(self.study.grid)

    def cells(self) -> list[Cell]:
        """Every cell, in the grid's order."""
        axes = [list(self._axis(axis)) for axis in self.study.grid]
        every = (self._cell(combination) for combination in product(*axes))
        return [cell for cell in every if not any(is_about(cell, wanted) for wanted in self.study.exclude)]

    def common(self) -> list[Change]:
        """The changes that every cell begins with."""
        return [Change(text, self.root.nearest(("changes", i)).place) for i, text in enumerate(self.study.changes)]

    def _axis(self, axis: str) -> "Iterator[tuple[str, str, str, tuple[Change, ...]]]":
        """(axis, label, its part of a cell's name, changes) of each value."""
        values = self.study.grid[axis]
        if isinstance(values, dict):
            for label, texts in values.items():
                places = [self.root.nearest(("grid", axis, label, i)).place for i in range(len(texts))]
                yield axis, label, label, tuple(map(Change, texts, places))
            return
        for i, value in enumerate(values):
            text = written(value)
            part = f"{self._short(axis)}-{_as_name(text)}"
            yield axis, text, part, (Change(f"{axis}={text}", self.root.nearest(("grid", axis, i)).place),)

    def _short(self, axis: str) -> str:
        """The last part of a key, where that names one axis only."""
        last = [key.rpartition(".")[2] for key in self.study.grid]
        own = axis.rpartition(".")[2]
        return own if last.count(own) == 1 else axis

    def _cell(self, combination: tuple[tuple[str, str, str, tuple[Change, ...]], ...]) -> Cell:
        return Cell(
            name="_".join(part for _, _, part, _ in combination),
            axes={axis: label for axis, label, _, _ in combination},
            changes=tuple(change for _, _, _, changes in combination for change in changes),
        )


def is_about(cell: Cell, wanted: dict[str, Scalar]) -> bool:
    """Whether an entry of `exclude` is about the cell."""
    return all(cell.axes.get(axis) == written(value) for axis, value in wanted.items())


def written(value: Scalar) -> str:
    """A value as it stands after `=`, so that it is read back as the same: quoted where the plain text is not text."""
    if not isinstance(value, str):
        return json.dumps(value)
    plain = scalar(value) == value and value[:1] not in ("{", "[", '"', "'")
    return value if plain else json.dumps(value, ensure_ascii=False)


def _as_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-") or "empty"
