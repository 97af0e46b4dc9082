"""How a command says that something is wrong, and ends."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from rlpipe.recipe.errors import Problem

MISTAKE = 2
"""Exit code of a mistake in a recipe or on the command line."""


def stop(message: str) -> NoReturn:
    typer.echo(styled("error: ", typer.colors.RED) + message, err=True)
    raise typer.Exit(MISTAKE)


def styled(text: str, colour: str) -> str:
    """In colour where stderr shows it."""
    plain = not text or "NO_COLOR" in os.environ or not sys.stderr.isatty()
    return text if plain else typer.style(text, fg=colour or None, bold=True)


@contextmanager
def mistakes_told() -> Iterator[None]:
    """Prints a recipe's problems, without a traceback, and ends with the exit code of a mistake."""
    from rlpipe.recipe.errors import RecipeError

    try:
        yield
    except RecipeError as error:
        for problem in error.problems:
            say("error: ", typer.colors.RED, problem)
        raise typer.Exit(MISTAKE) from None


def say(severity: str, colour: str, problem: "Problem") -> None:
    parts = (styled(str(problem.place), ""), styled(problem.key, typer.colors.CYAN), problem.message)
    typer.echo(styled(severity, colour) + ": ".join(part for part in parts if part), err=True)
