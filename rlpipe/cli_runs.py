"""The verbs that train: run a recipe, go on with a run. As in `cli`, nothing heavy up here."""

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from rlpipe.terminal import mistakes_told, stop

if TYPE_CHECKING:
    from rlpipe.recipe.tasks import Recipe

TELLING = {"recipe.yaml", "events.jsonl", "report.html", ".lock", "tensorboard", "stages"}
"""What a run directory has before anything is made: all of it says what happened."""
RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe: arithmetic/grpo.")
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe: schedule.steps=20 model.path=FOLDER."),
]

Debug = Annotated[
    bool, typer.Option("--debug", help="Everything in this process, so that breakpoints work anywhere; no Ray.")
]
RunDir = Annotated[
    str | None,
    typer.Option(
        "--run-dir", metavar="DIR", help="Folder, or s3://…, gs://….  [default: runs/NAME, by the recipe's `name`]"
    ),
]


def run(
    recipe: RecipeArgument,
    changes: Changes = None,
    debug: Debug = False,
    run_dir: RunDir = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write traces for Perfetto into the run directory, below profile/.")
    ] = False,
    profile_steps: Annotated[
        str | None, typer.Option("--profile-steps", metavar="A:B", help="Of which steps.  [default: 2:3]")
    ] = None,
) -> None:
    """Run a recipe, and write what happens to its run directory.

    \b
    Examples:
      rlpipe run arithmetic/pipeline
      rlpipe run my.yaml schedule.steps=20 train.optimizer.learning_rate=3e-5
      rlpipe run arithmetic/pipeline stages.grpo.schedule.steps=20 --run-dir runs/short
      rlpipe run arithmetic/sft --debug
      rlpipe run arithmetic/grpo --profile --profile-steps 5:6
    """
    steps = _steps(profile, profile_steps)
    with mistakes_told():
        from rlpipe.recipe.load import read, require_files

        checked = require_files(read(recipe, changes or ()))
        directory = place(run_dir or f"runs/{checked.name}")
        refuse_used(directory, "run", [recipe, *(changes or ()), *(["--debug"] if debug else [])])
        start(checked, directory, debug, steps)


def resume(
    run_dir: Annotated[str, typer.Argument(metavar="RUN_DIR", help="The directory of a run that ended early.")],
    changes: Changes = None,
    debug: Debug = False,
) -> None:
    """Go on with a run that was stopped, killed, or failed.

    Stages that were finished stay as they are. The others go on from their last whole checkpoint, exactly as if nothing
    had happened (train.save_steps says how often there is one). Steps of RL that were recorded after it, or all of them
    without one, are trained again on their stored trajectories; an offline stage without one begins again.

    Its recipe is RUN_DIR/recipe.yaml, in which credentials are left out: give them again as changes.

    \b
    Examples:
      rlpipe resume runs/arithmetic-sft
      rlpipe resume runs/arithmetic deadlines.train=1200
    """
    directory = place(run_dir)
    file = _recipe_of(directory)
    with mistakes_told():
        from rlpipe.recipe.load import read, require_files

        start(require_files(read(file, changes or ())), directory, debug)


def place(run_dir: str) -> Path | str:
    """A folder, or the URL of an object store."""
    return run_dir if "://" in run_dir else Path(run_dir)


def _recipe_of(directory: Path | str) -> Path:
    """The file of a run's own recipe, which lies in an object store in one on this machine."""
    file = Path(directory) / "recipe.yaml"
    if isinstance(directory, str):
        from rlpipe.data.remote import fetch, same, storage_of, work_folder
        from rlpipe.pipelines.supervision import INPUTS

        with unreachable_told():
            file = work_folder(directory) / "recipe.yaml"
            if (storage := storage_of(file.parent)).exists(file.name):
                file.write_bytes(storage.read(file.name))
            if storage.exists(INPUTS) and not same(file.parent, INPUTS):
                fetch(file.parent, INPUTS)
    if not file.is_file():
        stop(f"{directory} is no run directory: it has no recipe.yaml; `rlpipe run` makes one below runs/")
    return file


@contextmanager
def unreachable_told() -> Iterator[None]:
    """Says what is wrong with the URL of a run directory, and ends with the exit code of a mistake."""
    from rlpipe.data.remote import Unreachable

    try:
        yield
    except Unreachable as error:
        stop(str(error))


def start(recipe: "Recipe", directory: Path | str, debug: bool, steps: tuple[int, int] | None = None) -> NoReturn:
    """Run it, and end this process with its exit code."""
    # Before torch is loaded, for --debug: spinning threads slow a shared machine down several times over.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler prints when it begins and ends
    from rlpipe.pipelines.profiling import Steps
    from rlpipe.pipelines.run import run as run_recipe
    from rlpipe.pipelines.sole import Taken, Unusable
    from rlpipe.runtime.tracebacks import shown_cleanly

    try:
        with unreachable_told(), shown_cleanly():
            code = run_recipe(recipe, directory, debug, steps and Steps(*steps))
    except Taken as error:
        stop(f"{directory} is at work: {error.who}; wait for it, or stop it first")
    except Unusable as error:
        stop(f"{error}: --run-dir")
    raise typer.Exit(code)


def _steps(profile: bool, steps: str | None) -> tuple[int, int] | None:
    """The first and the last step to profile."""
    if not profile:
        if steps is not None:
            stop("--profile-steps says which steps --profile records: give that, too")
        return None
    found = re.fullmatch(r"(\d+)(?::(\d+))?", "2:3" if steps is None else steps)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last:
        stop(f"--profile-steps {steps}: expected A:B, the first and the last step with 1 <= A <= B, or one step: 2:3")
    return first, last


def refuse_used(directory: Path | str, verb: str, arguments: list[str]) -> None:
    """No run writes into the directory of another; the same `arguments` of the verb do for a directory beside it."""
    if isinstance(directory, str):
        return _refuse_used_url(directory)
    if directory.exists() and not directory.is_dir():
        stop(f"{directory} is a file; a run needs a folder: --run-dir")
    if not directory.exists() or not any(directory.iterdir()) or _made_nothing(directory):
        return
    from rlpipe.runtime.machine import command

    others = (directory.with_name(f"{directory.name}-{n}") for n in count(2))
    other = next(path for path in others if not path.exists())
    stop(
        f"{directory} holds an earlier run, which stays. To go on with that one, if it ended early:\n"
        f"  {command('rlpipe')} {shlex.join(['resume', str(directory)])}\n"
        f"To run into another directory:\n"
        f"  {command('rlpipe')} {shlex.join([verb, *arguments, '--run-dir', str(other)])}\n"
        f"Or to remove the earlier run first:\n"
        f"  {shlex.join(['rm', '-r', str(directory)])}"
    )


def _made_nothing(directory: Path) -> bool:
    """Whether a run ended there before it had made anything: a mistake was told, and is mended now. What it told stays
    in events.jsonl."""
    if not all((directory / name).is_file() for name in ("recipe.yaml", ".lock")):
        return False  # no run was here: what lies there is somebody's own
    parts = [directory, *directory.glob("stages/*")]
    return all(part.is_dir() and _told_alone(part) for part in parts)


def _told_alone(part: Path) -> bool:
    """Whether a stage has measured nothing yet: training that is not saved on its way leaves no other trace."""
    from rlpipe.data.storage import Storage
    from rlpipe.observe.events import read

    kinds = {event["kind"] for event in read(Storage(part))[0]}
    return all(entry.name in TELLING for entry in part.iterdir()) and not kinds & {"metrics", "evaluation", "commit"}


def _refuse_used_url(url: str) -> None:
    from rlpipe.data.remote import storage_of, work_folder

    with unreachable_told():
        used = storage_of(work_folder(url)).exists("recipe.yaml")
    if used:
        stop(f"{url} holds an earlier run, which stays; `rlpipe resume {url}` goes on with it")
