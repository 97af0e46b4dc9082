"""What is wrong with a recipe: every problem at once, each with its place, its key and the fix."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was written: a line of a file, or an override (line 0)."""

    source: str
    line: int
    folder: Path
    """Relative paths written here start from this folder."""

    @property
    def typed(self) -> bool:
        """On the command line, not in a file."""
        return not self.line

    def __str__(self) -> str:
        return self.source if self.typed else f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend in a recipe."""

    place: Place
    key: str
    """Full dotted key, or empty where the problem is of the whole file."""
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.place), self.key, self.message) if part)


class RecipeError(ValueError):
    """A recipe that cannot be used, with all its problems."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.place.source, problem.place.line)))
        super().__init__("\n".join(map(str, self.problems)))


def in_file(file: Path, line: int) -> Place:
    """A line of a file."""
    return Place(shown(file), line, file.parent)


def in_override(text: str) -> Place:
    """An override; relative paths in it start where the user typed it."""
    return Place(f"override `{text}`", 0, Path.cwd())


def on_command_line() -> Place:
    """Where a recipe is named."""
    return Place("", 0, Path.cwd())


def shown(path: Path) -> str:
    """A path as people would type it: relative where it lies below the working directory."""
    full = path.absolute()
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)


def dotted(path: Iterable[str | int]) -> str:
    """`("rewards", "mix", 0)` as `rewards.mix.0`."""
    return ".".join(map(str, path))


def choices(options: Iterable[object]) -> str:
    """Options in a sentence: `one of \\`a\\`, \\`b\\``."""
    quoted = [f"`{str(option).lower() if isinstance(option, bool) else option}`" for option in options]
    return quoted[0] if len(quoted) == 1 else "one of " + ", ".join(quoted)
