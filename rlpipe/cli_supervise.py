"""The verb that a job on a cluster runs. As in `cli`, nothing heavy up here."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from rlpipe import __version__
from rlpipe.cli_runs import Changes, RecipeArgument, unreachable_told
from rlpipe.terminal import mistakes_told, stop


def supervise(
    recipe: RecipeArgument,
    changes: Changes = None,
    run_dir: Annotated[str, typer.Option("--run-dir", metavar="DIR", help="Where results go.")] = "",
    max_retries: Annotated[
        int, typer.Option("--max-retries", min=0, help="Losses in a row, with no step between, that are resumed.")
    ] = 3,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that is in --run-dir.")] = False,
    keep_inputs: Annotated[
        bool,
        typer.Option(
            "--keep-inputs", hidden=True, help="First copy the recipe's folder to RUN_DIR/inputs, and read it there."
        ),
    ] = False,
    needs_version: Annotated[str, typer.Option("--needs-version", hidden=True)] = __version__,
) -> None:
    """Run a recipe, and resume it when its driver dies. `submit` starts this on the cluster, and a batch script or a
    Kubernetes job should.

    The driver is a process of its own. If it is killed, or fails of lost processes, nodes or connections, it is resumed
    from the run directory after a rest that doubles from 1 s; after --max-retries losses without a step in between it
    gives up, and says which fault recurs. A mistake in the recipe, the data or a reward is never tried again.

    Exit codes are those of `run`.

    \b
    Examples:
      rlpipe supervise my.yaml --run-dir /shared/runs/sums
      rlpipe supervise my.yaml --run-dir /shared/runs/sums --resume     what a requeued batch job says
    """
    if needs_version != __version__:
        stop(
            f"the cluster has rlpipe {__version__}, and the job comes from {needs_version}: install that, or submit "
            "without --installed"
        )
    if not run_dir:
        stop("--run-dir says where results go; it is needed here, so that a run is resumed from where it was begun")
    from rlpipe.data import remote
    from rlpipe.pipelines import supervision

    with mistakes_told():
        place = run_dir if remote.is_url(run_dir) else str(Path(run_dir).expanduser().absolute())
        with unreachable_told():
            _refuse_used(place, resume)
            file = _kept(Path(recipe).absolute(), place) if keep_inputs else recipe
        from rlpipe.recipe.load import read, require_files

        checked = require_files(read(str(file), changes or ()))
    _say(f"rlpipe {__version__} from {Path(__file__).parent}; run directory {place}")

    def lost(text: str) -> None:
        _say(text)
        with suppress(Exception):  # it is told above; a run directory that cannot be written is no reason to end
            supervision.record(place, text)

    code = supervision.supervise(
        lambda: supervision.in_a_process(checked, place), lambda: supervision.steps_done(place), max_retries, lost
    )
    raise typer.Exit(code)


def _kept(recipe: Path, place: str) -> Path:
    from rlpipe.pipelines import supervision
    from rlpipe.pipelines.sole import Taken, Unusable

    try:
        folder = supervision.keep_inputs(recipe.parent, place)
    except Taken as error:
        stop(f"{place} is at work: {error.who}; wait for it, or stop it first")
    except Unusable as error:
        stop(f"{error}: --run-dir")
    os.chdir(folder)  # where modules lie that rewards are named by
    return folder / recipe.name


def _refuse_used(place: str, resume: bool) -> None:
    from rlpipe.data.remote import storage_of, work_folder
    from rlpipe.recipe.resolved import FILE

    if not resume and storage_of(work_folder(place)).exists(FILE):
        stop(f"{place} holds an earlier run, which stays; --resume goes on with it, another --run-dir begins anew")


def _say(text: str) -> None:
    print(f"rlpipe: {text}", flush=True)
