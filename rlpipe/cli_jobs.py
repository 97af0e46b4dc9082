"""The verbs for runs on a cluster, through Ray's job server. As in `cli`, nothing heavy up here."""

import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import typer

from rlpipe import __version__
from rlpipe.cli_runs import Changes, RecipeArgument
from rlpipe.terminal import mistakes_told
from rlpipe.terminal import stop as stop_with

if TYPE_CHECKING:
    from rlpipe.runtime.jobs import JobDetails, Jobs

START_SECONDS = 60.0
"""How long `submit` waits for a job to begin before it leaves it alone."""
STOP_SECONDS = 30.0

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The cluster's dashboard, http://HEAD:8265.  [default: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS]",
    ),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="As `rlpipe jobs` prints it.")]
Follow = Annotated[bool, typer.Option("--follow", help="Print what it prints, to its end; Ctrl-C leaves it running.")]


def submit(
    recipe: RecipeArgument,
    changes: Changes = None,
    address: Address = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The job's id.  [default: the recipe's `name` and six letters]")
    ] = None,
    run_dir: Annotated[
        str | None,
        typer.Option(
            "--run-dir",
            metavar="DIR",
            help="Where results go, on the cluster: a folder that all nodes see, or s3://…, gs://….  "
            "[default: ~/rlpipe-runs/JOB]",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is in --run-dir.")] = False,
    follow: Follow = False,
    max_retries: Annotated[
        int, typer.Option("--max-retries", min=0, help="Losses in a row, with no step between, that are resumed.")
    ] = 3,
    shared: Annotated[
        list[str] | None,
        typer.Option("--shared", metavar="DIR", help="The cluster sees this folder, too: its files do not go along."),
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Use the cluster's own rlpipe; it must be of this version.")
    ] = False,
    python: Annotated[str, typer.Option("--python", help="The cluster's Python, on its head.")] = "python",
) -> None:
    """Run a recipe on a Ray cluster, as a job. It goes on without this machine.

    What goes along: the recipe with what it extends, the Python files and modules of its rewards, local data and small
    models, and this rlpipe. No credentials: the job has those of the cluster's own environment.

    A driver that dies is resumed from the run directory.

    \b
    Examples:
      rlpipe submit my.yaml --address http://head:8265
      rlpipe submit arithmetic/grpo schedule.steps=20 --run-dir /shared/runs/sums --follow
      rlpipe submit my.yaml --run-dir s3://bucket/runs/sums
      rlpipe submit my.yaml --run-dir /shared/runs/sums --resume
    """
    with mistakes_told(), tempfile.TemporaryDirectory(prefix="rlpipe-job-") as scratch:
        from rlpipe.recipe import bundle
        from rlpipe.recipe.load import read

        loaded = read(recipe, changes or ())
        job_name = name or f"{_plain(loaded.recipe.name)}-{uuid4().hex[:6]}"
        place = run_dir or f"~/rlpipe-runs/{job_name}"
        _require_lasting(place, resume, run_dir is None)
        brought = bundle.write(loaded, Path(scratch) / "inputs", [Path(path) for path in shared or ()])
        with _job_errors_told():
            from rlpipe.runtime.jobs import Job, require_version

            jobs = _jobs(address)
            require_version(jobs.ray_version)
            entry = _entrypoint(python, place, max_retries, resume, installed)
            jobs.submit(Job(job_name, entry, Path(scratch), place, not installed))
    _tell_submitted(jobs, job_name, place, brought, installed)
    _after_submission(jobs, job_name, follow)


def jobs(address: Address = None) -> None:
    """List the jobs that rlpipe submitted to a cluster.

    \b
    Example:
      rlpipe jobs --address http://head:8265
    """
    with _job_errors_told():
        from rlpipe.runtime.jobs import run_dir_of

        found = [details for details in _jobs(address).all() if run_dir_of(details)]
        width = max((len(details.submission_id) for details in found), default=0)
        for details in found:
            typer.echo(f"{details.submission_id:<{width}}  {_how(details):<24}  {run_dir_of(details)}")
    if not found:
        typer.echo("no jobs of rlpipe; `rlpipe submit` makes one")


def logs(job: JobName, address: Address = None, follow: Follow = False) -> None:
    """Print what a job has printed.

    \b
    Examples:
      rlpipe logs sums-3f9a2c
      rlpipe logs sums-3f9a2c --follow
    """
    with _job_errors_told():
        server = _jobs(address)
        if not follow:
            return typer.echo(server.log(job), nl=False)
        _follow(server, job)


def status(job: JobName, address: Address = None) -> None:
    """Say where a job stands: its step, newest metrics and faults.

    Step, metrics and faults are read from the run directory, where this machine sees it; else the end of the job's log
    is shown.

    \b
    Example:
      rlpipe status sums-3f9a2c --address http://head:8265
    """
    with _job_errors_told():
        from rlpipe.observe import standing
        from rlpipe.runtime.jobs import run_dir_of

        server = _jobs(address)
        details = server.find(job)
        place = run_dir_of(details) or ""
        told = [("job", f"{job}  {_how(details)}"), ("run", place)]
        found, why = _standing(place) if place else (None, "it is no job of rlpipe")
        if found:
            told += standing.lines(found)
        else:
            told += [("log", f"({why}; the end of the job's log:)")]
            told += [("", line) for line in server.log(job).splitlines()[-8:]]
    for heading, text in told:
        typer.echo(f"{heading:<8} {text}".rstrip())


def stop(job: JobName, address: Address = None) -> None:
    """Stop a job. Its run directory stays, and the run can be resumed from it.

    \b
    Example:
      rlpipe stop sums-3f9a2c
    """
    with _job_errors_told():
        from rlpipe.runtime.jobs import run_dir_of

        details = _jobs(address).stop(job, STOP_SECONDS)
    typer.echo(f"{job}  {_how(details)}  {run_dir_of(details) or ''}".rstrip())


def attach(job: JobName, address: Address = None) -> None:
    """Follow a job to its end, and end with its exit code. That is 130 if it was stopped. Ctrl-C leaves it running.

    \b
    Example:
      rlpipe attach sums-3f9a2c
    """
    with _job_errors_told():
        raise typer.Exit(_follow(_jobs(address), job))


def _jobs(address: str | None) -> "Jobs":
    from rlpipe.runtime.jobs import Jobs

    return Jobs(address)


@contextmanager
def _job_errors_told() -> Iterator[None]:
    from rlpipe.runtime.jobs import JobError

    try:
        yield
    except typer.Exit:  # which is a RuntimeError, too
        raise
    except (JobError, RuntimeError, OSError) as error:  # what Ray's client raises of answers, and of connections
        stop_with(str(error))


def _entrypoint(python: str, place: str, max_retries: int, resume: bool, installed: bool) -> str:
    words = [python, "-m", "rlpipe", "supervise", "inputs/recipe.yaml", "--keep-inputs", "--run-dir", place]
    words += ["--max-retries", str(max_retries)]
    words += ["--resume"] if resume else []
    words += ["--needs-version", __version__] if installed else []
    return shlex.join(words)


def _require_lasting(place: str, resume: bool, by_default: bool) -> None:
    if resume and by_default:
        stop_with("--resume goes on with the run in --run-dir: give that")
    if "://" not in place and not place.startswith(("/", "~")):
        stop_with(
            f"--run-dir {place} would be below the job's own folder, which goes when the job ends; give a path that "
            "begins with / or ~, or a URL such as s3://bucket/runs/NAME"
        )


def _plain(name: str) -> str:
    """A name that can be part of a URL."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def _tell_submitted(jobs: "Jobs", name: str, place: str, brought, installed: bool) -> None:
    own = f"the cluster's own, which must be {__version__}" if installed else f"{__version__}, brought from here"
    typer.echo(f"job      {name}\nrun      {place}\nrlpipe   {own}")
    for path in brought.brought:
        typer.echo(f"brought  {path}")
    for path in brought.left:
        typer.echo(f"there    {path} (the cluster must have it)")
    at = f" --address {jobs.address}"
    typer.echo("".join(f"{verb:<8} rlpipe {verb} {name}{at}\n" for verb in ("attach", "status", "stop")), nl=False)


def _after_submission(jobs: "Jobs", name: str, follow: bool) -> None:
    """What goes wrong at once is told at once."""
    with _job_errors_told():
        from rlpipe.runtime.jobs import exit_code

        if follow:
            raise typer.Exit(_follow(jobs, name))
        details = jobs.begun(name, START_SECONDS)
        typer.echo(f"status   {_how(details)}")
        if details.status.is_terminal() and exit_code(details):
            typer.echo(jobs.log(name) or details.message or "", err=True)
            raise typer.Exit(exit_code(details))


def _follow(jobs: "Jobs", name: str) -> int:
    """The job's exit code."""
    from rlpipe.runtime.jobs import exit_code

    try:
        details = jobs.follow(name, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        typer.echo(f"\nThe job goes on. To follow it again: rlpipe attach {name} --address {jobs.address}", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{name}  {_how(details)}", err=True)
    if details.driver_exit_code is None and details.message:  # it never began: the message says why
        typer.echo(details.message, err=True)
    return exit_code(details)


def _how(details: "JobDetails") -> str:
    """`RUNNING for 1:05`, `FAILED (exit code 1)`."""
    from rlpipe.observe.progress import duration
    from rlpipe.runtime.jobs import exit_code

    if details.status.is_terminal():
        code = exit_code(details)
        return f"{details.status.value}" + (f" (exit code {code})" if code and details.status != "STOPPED" else "")
    since = (details.start_time or time.time() * 1e3) / 1e3
    return f"{details.status.value} for {duration(max(0.0, time.time() - since))}"


def _standing(place: str):
    """What the run directory says, or why it does not."""
    from rlpipe.observe import standing

    try:
        found = standing.standing(str(Path(place).expanduser()) if "://" not in place else place)
    except Exception as error:  # any of a storage's: no package for it, no credentials here
        return None, f"{place} cannot be read from here ({type(error).__name__}: {error})"
    return found, "" if found else f"nothing of it is to be seen from here in {place}"
