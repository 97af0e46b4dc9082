"""What the benchmarks' command lines share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from typer import Option

from step import machine
from step.command import environment
from step.report import Report
from step.tables import Grid

ENGINES, LENGTHS = ("vllm", "transformers"), ("short", "long")
RESULTS = Path(__file__).parents[1] / "results"

Engine = Annotated[str, Option(help="rlpipe's engine: vllm, transformers, or both.")]
Steps = Annotated[int, Option(help="Steps of each contestant per turn; one turn more than engines.")]
Patience = Annotated[float, Option(help="Seconds to wait for idle cores, before each turn.")]
Quick = Annotated[bool, Option(help="A shrunk run: tiny cases, one step. Its figures mean nothing.")]
Out = Annotated[Path, Option(help="Folder for the results: JSON, Markdown, SVG.")]
Keep = Annotated[Path | None, Option(help="Keep models, logs and run directories here.")]

console = Console()


def application() -> typer.Typer:
    return typer.Typer(add_completion=False, rich_markup_mode=None, context_settings={"max_content_width": 110})


def run(app: typer.Typer) -> None:
    os.environ.update(environment())
    app()


def chosen(text: str, names: tuple[str, ...], option: str) -> tuple[str, ...]:
    """One of the names, or all for `both`."""
    if text != "both" and text not in names:
        raise typer.BadParameter(f"expected {', '.join(names)} or both", param_hint=option)
    return names if text == "both" else (text,)


@contextmanager
def work_folder(keep: Path | None) -> Iterator[Path]:
    with TemporaryDirectory(prefix="rlpipe-benchmark-") as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def say(what: str) -> None:
    console.print(what, style="dim", markup=False, highlight=False)


def show_grid(name: str, grid: Grid, out: Path) -> None:
    """Print one table and write it."""
    console.print(grid.rich(), "")
    out.mkdir(parents=True, exist_ok=True)
    versions = ", ".join(f"{k} {v}" for k, v in machine.describe()["versions"].items())
    (out / f"{name}.md").write_text(f"{grid.markdown()}\n{versions}\n")
    console.print(f"Written: {out}/{name}.md")


def show(report: Report, out: Path) -> None:
    """Print it and write it; exits with 1 if a run of rlpipe failed."""
    for grid in report.grids():
        console.print(grid.rich(), "")
    report.write(out)
    console.print(f"Written: {out}/{report.name}.json, .md and .svg")
    if report.failed():
        raise typer.Exit(1)
