"""The verbs that look at run directories. As in `cli`, nothing heavy up here."""

from pathlib import Path
from typing import Annotated

import typer

from rlpipe.terminal import stop

RunDirectory = Annotated[str, typer.Argument(metavar="RUN_DIR", help="A run directory: runs/arithmetic.")]


def report(run_dir: RunDirectory) -> None:
    """Write the HTML report of a run, again.

    One file with curves and samples, which needs nothing else to be looked at. Prints where it is.

    \b
    Example:
      rlpipe report runs/arithmetic
    """
    _require(run_dir)
    from rlpipe.observe import report as reports

    typer.echo(reports.write(run_dir))


def ledger(
    run_dir: RunDirectory,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="ID", help="What happened to this prompt: a `prompt_id`.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=0, help="How many of the last steps to list.")] = 10,
) -> None:
    """See what became of the prompts of an RL run. By state, by epoch, per step; or of one of them.

    Also while the run goes on. A prompt's id stands in the rollouts, in the column prompt_id.

    \b
    States:
      pending    drawn, and to be answered anew: its lease has ended without an answer
      leased     being answered
      completed  answered, and on disk
      trained    its step is committed
      failed     the same, but none of its rewards could be computed: no gradient
      dropped    replaced by dynamic sampling

    \b
    Examples:
      rlpipe ledger runs/arithmetic-grpo
      rlpipe ledger runs/arithmetic-grpo --steps 100
      rlpipe ledger runs/arithmetic-grpo --prompt train-6143-1d0e11c5
    """
    _require(run_dir)
    from rich.console import Console

    from rlpipe.data.storage import Storage
    from rlpipe.observe import ledger as pages

    console, run = Console(soft_wrap=True, highlight=False, markup=False), Storage(run_dir)
    try:
        there = pages.show_prompt(console, run, prompt) if prompt else pages.show(console, run, steps)
    except pages.UNREADABLE as error:
        stop(str(error))
    if not there:
        stop(f"{run_dir} has no ledger: it is no run with RL, or it ended before its first step")


def _require(run_dir: str) -> None:
    if "://" not in run_dir and not Path(run_dir).is_dir():
        stop(f"no run directory {run_dir}; `rlpipe run` makes one below runs/")
