"""results.csv: one row per finished cell, the truth about what need not run again.

A row is one write, then fsync, so that a kill leaves at most a torn last line, which counts for nothing.
A row that replaces another, or has columns the file lacks, rewrites the file: the old one or the new one, never a part.
"""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlpipe.data.storage import Storage

NAME = "results.csv"
CELL, RECIPE = "cell", "recipe"
"""Columns that say which cell a row is of, and of which resolved recipe."""

Row = dict[str, str]


class Results:
    """The rows of a study's folder, by cell."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.columns: list[str] = []
        self.rows: dict[str, Row] = {}
        self.torn = False
        """Whether a kill left half a line, which counts for nothing."""
        if self._path.exists():
            self._read(self._path.read_bytes().decode(errors="replace"))

    def finished(self, cell: str, digest: str) -> bool:
        """Whether there is a row of this cell from the same recipe."""
        return cell in self.rows and self.rows[cell][RECIPE] == digest

    def put(self, row: Mapping[str, str]) -> None:
        """Add the row of a cell, on disk when this returns."""
        new = [column for column in row if column not in self.columns]
        appends = not new and row[CELL] not in self.rows and not self.torn and self._path.exists()
        self.columns += new
        self.rows[row[CELL]] = {column: row.get(column, "") for column in self.columns}
        if appends:
            self._append(self.rows[row[CELL]])
        else:
            self._rewrite()

    def _read(self, text: str) -> None:
        whole, newline, rest = text.rpartition("\n")
        self.torn = bool(rest)
        lines = list(csv.reader(io.StringIO(whole + newline)))
        self.columns = lines[0] if lines else []
        for values in lines[1:]:
            row = dict(zip(self.columns, values, strict=False))
            if len(values) == len(self.columns):
                self.rows[row[CELL]] = row

    def _append(self, row: Row) -> None:
        with open(self._path, "ab", buffering=0) as file:
            file.write(_lines([[row[column] for column in self.columns]]))
            os.fsync(file.fileno())

    def _rewrite(self) -> None:
        rows = [[row.get(column, "") for column in self.columns] for row in self.rows.values()]
        Storage(self._path.parent).write(NAME, _lines([self.columns, *rows]))
        self.torn = False


def _lines(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
