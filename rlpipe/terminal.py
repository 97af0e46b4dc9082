"""How a command says that something is wrong, and ends."""

import os
import sys
from typing import NoReturn

import typer

MISTAKE = 2
"""Exit code of a mistake in a recipe or on the command line."""


def stop(message: str) -> NoReturn:
    typer.echo(styled("error: ", typer.colors.RED) + message, err=True)
    raise typer.Exit(MISTAKE)


def styled(text: str, colour: str) -> str:
    """In colour where stderr shows it."""
    plain = not text or "NO_COLOR" in os.environ or not sys.stderr.isatty()
    return text if plain else typer.style(text, fg=colour or None, bold=True)
