"""Training a committed step of an RL run once more, in this process, to compare its numbers with what was logged.

It happens in a folder of its own, which looks like that of a run to be resumed; the run directory is only read.
"""

import math
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rlpipe.data.storage import Storage
from rlpipe.ledger.book import LedgerError
from rlpipe.ledger.standing import standing
from rlpipe.observe.compared import Pair
from rlpipe.observe.console import PlainView
from rlpipe.observe.events import Event, EventLog, read
from rlpipe.observe.runinfo import versions
from rlpipe.pipelines.online import again
from rlpipe.pipelines.online.replay_folder import Beginning, fill
from rlpipe.pipelines.run import stages_of
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.references import resolve
from rlpipe.recipe.tasks import Recipe, RlRecipe
from rlpipe.runtime.local import LocalRuntime
from rlpipe.training.checkpoint import CheckpointMismatch

_OF_THE_SPLIT = ("positions_used",)
"""Metrics of how a batch was packed, which other numbers of ranks do in other ways."""


class NoReplay(RuntimeError):
    """The step cannot be trained again here; the message says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be trained again."""

    run_dir: Path
    step: int
    stage: str | None
    """Of a pipeline that has several RL stages."""
    stop: bool
    """Whether the debugger stops before the step's update."""
    anyway: bool
    """Whether to go on where other code or another kind of device has made the numbers."""


def replay(recipe: Recipe, request: Request, console: Console) -> dict[int, list[Pair]]:
    """The numbers of the step, and of those before it that were trained again on the way. Raises `NoReplay`, and what
    data and models raise."""
    place, task = _stage(recipe, request)
    found = read(Storage(place))[0]
    logged = _logged(found)
    _require_step(place, request.step, logged)
    if not request.anyway:
        _require_alike(found, place)
    with tempfile.TemporaryDirectory(prefix="rlpipe-replay-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        events = EventLog(Storage(folder), views=[PlainView(console)])
        stack.callback(events.close)
        try:
            events.note(_says(place, request.step, fill(folder, place, request.step)))
            for other in _other_libraries(found):
                events.note(other)
            stage = Stage(task, folder, LocalRuntime(), events, debug=True)
            look = again.stop if request.stop else lambda _: None
            metrics = again.go(stage, task, request.step, look)
        except FileNotFoundError as error:
            raise NoReplay(f"what has to be trained again is not there any more: {error}") from error
        except (LedgerError, CheckpointMismatch) as error:
            raise NoReplay(str(error).replace(scratch, str(place))) from error
    skipped = _OF_THE_SPLIT if task.train.ranks > 1 else ()
    return {step: _pairs(logged.get(step, {}), numbers, skipped) for step, numbers in metrics.items()}


def _stage(recipe: Recipe, request: Request) -> tuple[Path, RlRecipe]:
    """Where the RL stage lies, and its recipe."""
    stages = stages_of(recipe, request.run_dir.resolve())
    online = {name: found for name, found in stages.items() if isinstance(found[0], RlRecipe)}
    if not online:
        raise NoReplay(f"{request.run_dir} has no RL stage, and no other stores its batches")
    name = next(iter(online)) if request.stage is None and len(online) == 1 else request.stage
    if name not in online:
        which = f"the RL stages {', '.join(online)}; name one with --stage" if any(online) else "no stages"
        raise NoReplay(f"{request.run_dir} has {which}")
    task, place = online[name]
    return place, resolve(task, {each: str(folder) for each, (_, folder) in stages.items()})


def _logged(found: list[Event]) -> dict[int, dict[str, float]]:
    """By step; of one that was trained again, what was logged last."""
    logged: dict[int, dict[str, float]] = {}
    for event in found:
        if event["kind"] == "metrics":
            logged.setdefault(event["step"], {}).update(event["metrics"])
    return logged


def _require_step(place: Path, step: int, logged: Mapping[int, dict[str, float]]) -> None:
    try:
        ledger = standing(Storage(place))
    except LedgerError as error:
        raise NoReplay(str(error)) from error
    if ledger is None:
        raise NoReplay(f"{place} has no ledger: it ended before its first step")
    if not 1 <= step <= ledger.step:
        have = f"steps 1 to {ledger.step} are committed" if ledger.step else "no step is committed"
        raise NoReplay(f"{place} has no step {step}: {have}")
    if "reward" not in logged.get(step, {}):
        raise NoReplay(
            f"step {step} of {place} is committed, but the run ended before it logged the step's numbers: there is "
            "nothing to compare with. `rlpipe resume` trains it again and logs them"
        )


def _require_alike(found: list[Event], place: Path) -> None:
    """Raises `NoReplay` if other code or another kind of device has made the numbers."""
    import torch

    started = _started(found)
    ours = versions()["rlpipe"]
    theirs, gpus = started["versions"].get("rlpipe", ours), _had_gpus(found)
    if theirs != ours:
        raise NoReplay(
            f"{place} was made by rlpipe {theirs}, and this is rlpipe {ours}, whose numbers may differ: replay "
            "it with that one, or take differences as they come with --anyway"
        )
    if bool(gpus) != torch.cuda.is_available():
        theirs, ours = ("on GPUs", "none") if gpus else ("without a GPU", "one (CUDA_VISIBLE_DEVICES='' hides it)")
        raise NoReplay(
            f"{place} was trained {theirs}, and this process sees {ours}. They round differently: replay it "
            "on a machine of the same kind, or take differences as they come with --anyway"
        )


def _had_gpus(found: list[Event]) -> bool:
    """Of the ranks, whose machine may be another one than the driver's. Of a run that was made before they said so, the
    driver's is what there is to go by."""
    told = [event["device"] for event in found if event["kind"] == "trains_on"]
    return told[-1] == "cuda" if told else bool(_started(found)["host"].get("gpus", 0))


def _other_libraries(found: list[Event]) -> list[str]:
    """What may round otherwise than it did."""
    then, now = _started(found)["versions"], versions()
    others = [name for name in ("torch", "transformers", "deepspeed") if then.get(name, now[name]) != now[name]]
    return [f"the run had {name} {then[name]}, and this is {now[name]}: last digits may differ" for name in others]


def _started(found: list[Event]) -> dict[str, Any]:
    return [event for event in found if event["kind"] == "run_started"][-1]


def _says(place: Path, step: int, beginning: Beginning) -> str:
    begun = beginning.step
    start = f"the checkpoint of step {begun}" if begun else "the model that the stage began with, without a checkpoint"
    steps = f"step {step}" if step == begun + 1 else f"steps {begun + 1} to {step}"
    passed_over = "".join(f"\n  not used: {why}" for why in beginning.passed_over)
    return f"training {steps} of {place} again, from {start}{passed_over}"


def _pairs(logged: Mapping[str, float], replayed: Mapping[str, float], skipped: tuple[str, ...]) -> list[Pair]:
    return [Pair(name, logged.get(name, math.nan), value) for name, value in replayed.items() if name not in skipped]
