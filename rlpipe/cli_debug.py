"""The verbs for finding out what a run did. As in `cli`, nothing heavy up here."""

import os
from pathlib import Path
from typing import Annotated

import typer

from rlpipe.terminal import mistakes_told, stop


def replay(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The directory of a run with RL.")],
    step: Annotated[int, typer.Argument(metavar="STEP", help="A committed step: `rlpipe ledger RUN_DIR` lists them.")],
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="NAME", help="Of a pipeline with several RL stages.")
    ] = None,
    stop_there: Annotated[
        bool, typer.Option("--breakpoint", help="Stop in the debugger before the step's update.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="Of the logged number, or of 1 where that is smaller.")
    ] = 1e-5,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also if another rlpipe made the run, or GPUs where there are none.")
    ] = False,
) -> None:
    """Train a step of an RL run again, and compare its numbers. It is a committed one, whose were logged.

    In one process, on the step's stored trajectories, from the last checkpoint before it: steps in between are trained
    again, too, and all steps from the first one where there is no checkpoint. RUN_DIR is only read.

    Ends with 0 if every number is equal within the tolerance, with 1 if not, and with 2 if the step cannot be trained
    again here. A run of one rank gives the same numbers to the last bit on a CPU with as many threads.

    \b
    Examples:
      rlpipe replay runs/arithmetic-grpo 7
      rlpipe replay runs/arithmetic 7 --stage grpo --breakpoint
    """
    file = run_dir / "recipe.yaml"
    if not file.is_file():
        stop(f"{run_dir} is no run directory: it has no recipe.yaml; `rlpipe run` makes one below runs/")
    with mistakes_told():
        from rlpipe.recipe.load import read, require_files

        recipe = require_files(read(file))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from rlpipe.pipelines.replay import Request
    from rlpipe.pipelines.replay_shown import compare

    raise typer.Exit(compare(recipe, Request(run_dir, step, stage, stop_there, anyway), tolerance))
