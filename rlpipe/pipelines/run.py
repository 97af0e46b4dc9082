"""A recipe from start to end: its stages in order, each with its own directory, events and roles."""

import bdb
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from rlpipe.data import remote
from rlpipe.data.records import DataError
from rlpipe.data.storage import Storage
from rlpipe.ledger.book import LedgerError
from rlpipe.models.load import ModelError
from rlpipe.models.quiet import quiet_libraries
from rlpipe.observe import report, runinfo, summary
from rlpipe.observe.console import console_view
from rlpipe.observe.events import EventLog, View
from rlpipe.observe.tracking import TENSORBOARD, TrackerMissing, trackers
from rlpipe.pipelines import checkpoints, full_disk, preflight, resuming
from rlpipe.pipelines.evaluating import afterwards
from rlpipe.pipelines.evaluating.ends import BenchmarksFailed, Regressed
from rlpipe.pipelines.exit_codes import DONE, FAILED, INTERRUPTED
from rlpipe.pipelines.offline.failures import TrainingFailed
from rlpipe.pipelines.profiling import Profile, Steps
from rlpipe.pipelines.sole import alone_in
from rlpipe.pipelines.stage import RESULTS, Stage
from rlpipe.recipe import resolved, secrets
from rlpipe.recipe.evaluating import EvalRecipe
from rlpipe.recipe.labelling import LabelRecipe
from rlpipe.recipe.references import resolve
from rlpipe.recipe.secrets import SecretUnreadable
from rlpipe.recipe.tasks import PipelineRecipe, Recipe, RlRecipe, StageRecipe
from rlpipe.rewards.reward import RewardUnusable
from rlpipe.rewards.stage import RewardFailed
from rlpipe.runtime import tracebacks
from rlpipe.runtime.handle import DeadlineExceeded, GivenUp, RoleDied
from rlpipe.runtime.local import LocalRuntime
from rlpipe.runtime.machine import command
from rlpipe.runtime.preflight.failed import PreflightFailed
from rlpipe.runtime.ray_token import NotAdmitted
from rlpipe.runtime.roles import AddressWrong, NoCluster, OtherVersions, PlacementError, Runtime
from rlpipe.runtime.termination import terminated_as_interrupted
from rlpipe.training.checkpoint import CheckpointMismatch
from rlpipe.weights.payload import WeightsRejected
from rlpipe.weights.verify import WeightSyncError

Look = Callable[[EventLog], None]
"""Looks at where a run is to be, and tells the events."""

BESIDE = (TENSORBOARD, "profile")
"""Folders of a stage that are no part of its result."""

TOLD = (
    DataError, ModelError, RewardUnusable, RewardFailed, TrackerMissing, DeadlineExceeded, RoleDied, GivenUp,
    PlacementError, PreflightFailed, TrainingFailed, WeightsRejected, WeightSyncError, CheckpointMismatch, LedgerError,
    SecretUnreadable, remote.Unreachable, Regressed, BenchmarksFailed, NotAdmitted, NoCluster, AddressWrong,
    OtherVersions,
)  # fmt: skip
"""Errors whose message says all there is to say: no traceback."""

LOST = (DeadlineExceeded, RoleDied, GivenUp, PlacementError, NoCluster)
"""Those of them that speak of processes, nodes and room on the cluster."""

NOT_COMPARED = (
    "All stages are done, but their models could not be compared at the end: {why}\n"
    "`rlpipe resume` tries that again; compare=false leaves it out; `rlpipe eval` compares by a recipe of your own."
)

MISTAKES = (
    TypeError, ValueError, LookupError, AttributeError, NameError, ImportError, SyntaxError, AssertionError,
    ArithmeticError, NotImplementedError, FileNotFoundError, PermissionError,
)  # fmt: skip
"""Python's errors that tell of a mistake in code or in a recipe."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: the process's exit code, and what it failed of."""

    code: int
    cause: str = ""
    """For people; empty where it did not fail."""
    mendable: bool = False
    """Whether the same may succeed when it is tried again: a process, a node or a connection was lost."""


def run(recipe: Recipe, run_dir: Path | str, debug: bool, profile: Steps | None = None) -> int:
    """Run all stages that `run_dir` does not hold finished, each from its last checkpoint; returns the process's exit
    code. Everything that happens is shown on the terminal and stands in `run_dir`. With `debug`, everything runs in
    this process and an unexpected error is raised. SIGTERM ends it as Ctrl-C does. `profile` says of which steps of
    each stage traces are written. `run_dir` may be a URL of an object store.

    Raises `Taken` if another process works in `run_dir`, and `Unreachable` for a URL that cannot be used.
    """
    return attempt(recipe, run_dir, debug, profile).code


def attempt(recipe: Recipe, run_dir: Path | str, debug: bool, profile: Steps | None = None) -> Outcome:
    """As `run`, for who may try again."""
    directory = remote.work_folder(run_dir)
    with alone_in(directory), terminated_as_interrupted():
        return _run(recipe, directory, run_dir, debug, profile)


def _run(recipe: Recipe, directory: Path, run_dir: Path | str, debug: bool, profile: Steps | None) -> Outcome:
    console = Console()
    quiet()
    code, cause, mendable = DONE, "", False
    try:
        secrets.settle(recipe.model_dump())
        remote.mark_below(directory, _places(recipe, directory))
        resuming.refuse_changes(recipe, directory)
        remote.storage_of(directory).write(resolved.FILE, resuming.own_recipe(recipe, directory).encode())
        with _cluster(debug):
            _run_stages(recipe, directory, console_view(debug, console), debug, profile)
    except (KeyboardInterrupt, bdb.BdbQuit):
        code = INTERRUPTED
    except Exception as error:
        full, told = full_disk.told(error, _places(recipe, directory)), isinstance(error, TOLD)
        if debug and not full and not told:
            raise
        code, cause = FAILED, secrets.hide(full or (str(error) if told else tracebacks.told(error)))
        mendable = not full and is_mendable(error)
    try:
        _say_where(console, run_dir, code)
    except OSError as error:  # the report is one of the things that a full disk has no room for
        if not full_disk.told(error, _places(recipe, directory)):
            raise
    finally:
        _say_why(console, cause)
    return Outcome(code, cause, mendable)


def is_mendable(error: Exception) -> bool:
    """Whether the same may succeed when it is tried again. What we raise for a mistake in the recipe, the data or the
    user's code, and Python's own errors for one in any code, comes again; what else there is comes from outside."""
    if isinstance(error, PreflightFailed):
        return error.passing
    return isinstance(error, LOST) or not isinstance(error, (*TOLD, *MISTAKES))


def _places(recipe: Recipe, directory: Path) -> list[Path]:
    return [place for _, place in stages_of(recipe, directory).values()]


def stages_of(recipe: Recipe, directory: Path) -> dict[str, tuple[StageRecipe, Path]]:
    """Each stage's task and directory; a recipe that is one task is the only stage, in the run directory itself."""
    if isinstance(recipe, PipelineRecipe):
        return {name: (task, directory / "stages" / name) for name, task in recipe.stages.items()}
    return {"": (recipe, directory)}


def _run_stages(recipe: Recipe, directory: Path, view: View, debug: bool, profile: Steps | None) -> None:
    places: dict[str, str] = {}
    stages = stages_of(recipe, directory)
    left = {name: task for name, (task, place) in stages.items() if not _is_done(task, place)}
    for name, (task, place) in stages.items():
        if name in left:
            # Once for all stages: what the last one lacks is told before the first one is trained.
            due = left if not debug and name == next(iter(left)) else {}
            look = partial(preflight.check, _prefixed(due), directory) if due else None
            checkpoints.agree(place)
            _run_stage(name, resolve(task, places), place, view, debug, profile, look)
        else:
            resuming.bring(place)
        places[name] = str(place)
    if isinstance(recipe, PipelineRecipe) and recipe.compare:
        _compare(recipe, directory, view, debug)


def _compare(recipe: PipelineRecipe, directory: Path, view: View, debug: bool) -> None:
    """What the end shows, where the stages have not shown it themselves. That it cannot is told, and is no failure:
    what the recipe asks for is made, and nobody has asked for this."""
    place = directory / "stages" / afterwards.name_of(recipe)
    if resuming.finished(place):
        return
    try:
        try:
            _ask_all(recipe, directory, place, view, debug)
        except LOST:  # once more: what was answered is kept
            _ask_all(recipe, directory, place, view, debug)
    except Exception as error:
        if full_disk.told(error, [place]) or (debug and not isinstance(error, TOLD)):
            raise
        why = secrets.hide(str(error) if isinstance(error, TOLD) else tracebacks.told(error))
        Console(stderr=True).print(NOT_COMPARED.format(why=why), markup=False, highlight=False, soft_wrap=True)


def _ask_all(recipe: PipelineRecipe, directory: Path, place: Path, view: View, debug: bool) -> None:
    asked = afterwards.comparison_of(recipe, stages_of(recipe, directory))
    if asked is not None:
        remote.mark_below(directory, [place])
        _run_stage(place.name, asked, place, view, debug, None, None)


def _is_done(task: StageRecipe, place: Path) -> bool:
    """A labelling looks again: what it has asked it asks no more, unless a file that it hangs on was edited."""
    return resuming.finished(place) and not isinstance(task, LabelRecipe)


def _prefixed(stages: Mapping[str, StageRecipe]) -> dict[str, StageRecipe]:
    """By what stands before the keys of each in the recipe."""
    return {f"stages.{name}." if name else "": task for name, task in stages.items()}


def _run_stage(
    name: str,
    recipe: StageRecipe,
    directory: Path,
    view: View,
    debug: bool,
    profile: Steps | None,
    look: Look | None,
) -> None:
    storage = Storage(directory)  # for what writes files of its own; they are copied at the end
    run_name = f"{directory.parent.parent.name}/{name}" if name else directory.name
    views = [view, *trackers(recipe.tracking, storage, run_name), *_exported(run_name, debug)]
    events = EventLog(remote.storage_of(directory), stage=name or None, views=views)
    stage = Stage(recipe, directory, _runtime(recipe, debug), events, debug, profile)
    if profile is not None:
        events.add(Profile(stage.runtime, storage, profile, events.warning))
    try:
        with _recorded(events), _warnings_to(events):
            _announce(stage)
            if look is not None:
                look(events)
            _start(stage)
            _keep_results(stage)
    finally:
        events.close()
        for part in BESIDE:
            if (directory / part).is_dir():
                remote.keep(directory, part)


def _keep_results(stage: Stage) -> None:
    """Where the run directory is in an object store, what was made is copied there before the stage counts as done."""
    if (url := remote.url_of(stage.directory)) is not None:
        with stage.events.phase("upload", says=f"copying the result to {url}"):
            for part in RESULTS:
                if (stage.directory / part).is_dir():
                    remote.keep(stage.directory, part)


def _announce(stage: Stage) -> None:
    recipe = stage.recipe
    stage.events.run_started(recipe.task, _steps(recipe), runinfo.collect(recipe.model_dump()))


def _steps(recipe: StageRecipe) -> int:
    """As far as the recipe says."""
    match recipe:
        case RlRecipe():
            return recipe.schedule.steps
        case LabelRecipe() | EvalRecipe():
            return 0
    return recipe.train.max_steps or 0


def _start(stage: Stage) -> None:
    match stage.recipe:
        case RlRecipe() as recipe:
            from rlpipe.pipelines.online.rl import run_rl

            run_rl(stage, recipe)
        case LabelRecipe() as recipe:
            from rlpipe.pipelines.labelling.stage import run_label

            run_label(stage, recipe)
        case EvalRecipe() as recipe:
            from rlpipe.pipelines.evaluating.stage import run_evaluation

            run_evaluation(stage, recipe)
        case recipe:
            from rlpipe.pipelines.offline.stage import run_offline_stage

            run_offline_stage(stage, recipe)


def _runtime(recipe: StageRecipe, debug: bool) -> Runtime:
    if debug:
        return LocalRuntime()
    from rlpipe.runtime.ray_runtime import RayRuntime

    return RayRuntime(recipe.deadlines)


def _cluster(debug: bool) -> AbstractContextManager[None]:
    """Ray for the length of the run, unless everything happens in this process."""
    if debug:
        return nullcontext()
    from rlpipe.runtime.ray_runtime import connected

    return connected()


def _exported(run_name: str, debug: bool) -> list[View]:
    """Metrics of Ray, where there is one."""
    if debug:
        return []
    from rlpipe.runtime.ray_metrics import RayMetrics

    return [RayMetrics(run_name)]


@contextmanager
def _recorded(events: EventLog) -> Iterator[None]:
    """How the stage ended, as events."""
    try:
        yield
    except KeyboardInterrupt:
        events.run_finished("interrupted", "stopped with Ctrl-C")
        raise
    except bdb.BdbQuit:
        events.run_finished("interrupted", "stopped in the debugger")
        raise
    except BaseException as error:
        events.fault(f"{type(error).__name__}: {error}", fatal=True)
        events.run_finished("failed", type(error).__name__)
        raise
    events.run_finished("completed")


@contextmanager
def _warnings_to(events: EventLog) -> Iterator[None]:
    """Warnings of ours become events: the terminal shows them and the report keeps them."""
    handler = _ToEvents(events)
    logger = logging.getLogger("rlpipe")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _ToEvents(logging.Handler):
    def __init__(self, events: EventLog) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        self._events.warning(record.getMessage(), getattr(record, "lost", None))


def quiet() -> None:
    """What other libraries tell about themselves hides what the run tells."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_libraries()
    logging.getLogger("rlpipe").propagate = False


def _say_why(console: Console, cause: str) -> None:
    """What a failed run failed of: last on the screen, where one looks."""
    if cause:
        console.print(f"\nrlpipe: {secrets.hide(cause)}", style="red", markup=False, highlight=False, soft_wrap=True)


def _say_where(console: Console, run_dir: Path | str, code: int) -> None:
    """What there is to look at, also after a run that stopped half-way."""
    page = report.write(run_dir)
    summary.show(console, run_dir)
    lines = {DONE: "Done.", FAILED: "The run failed; what it did until then is kept.", INTERRUPTED: "Stopped."}
    console.print(
        f"{lines[code]}\n"
        f"  run directory  {run_dir}\n"
        f"  report         {page}\n"
        f"  curves         {command('tensorboard')} --logdir {shlex.quote(str(run_dir))}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
