"""Where a run stands, for whoever looks at it from outside: the stage under way, its newest numbers, its faults."""

from dataclasses import dataclass

from rlpipe.data.storage import Storage
from rlpipe.observe.events import Event, read
from rlpipe.observe.progress import Progress

FAULTS = 3
"""How many of the last ones are told."""


@dataclass(frozen=True)
class RunStanding:
    """The stage that wrote last."""

    progress: Progress
    faults: list[Event]
    ended: str
    """`completed`, `interrupted` or `failed`; empty while it goes on, or if it was killed."""
    updated: float
    """When it wrote last, in seconds since 1970."""


def standing(run_dir: str) -> RunStanding | None:
    """None where there is nothing to be read: another machine's disk, a run that has not begun."""
    stage = newest_stage(run_dir)
    return _standing(stage[0], stage[2]) if stage else None


def newest_stage(run_dir: str) -> tuple[str, Storage, list[Event]] | None:
    """The stage that wrote last (its name is empty where the run is no pipeline), where it lies, and its events."""
    run = Storage(run_dir)
    stages = {"": run} | {name.rpartition("/")[2]: run.folder(name) for name in run.names("stages/*")}
    found = [(name, storage, events) for name, storage in stages.items() if (events := read(storage)[0])]
    return max(found, key=lambda stage: stage[2][-1]["time"], default=None)


def _standing(stage: str, events: list[Event]) -> RunStanding:
    progress = Progress(stage)
    for event in events:
        progress.update(event)
    ends = [event for event in events if event["kind"] in ("run_started", "run_finished")]
    return RunStanding(
        progress,
        [event for event in events if event["kind"] == "fault"],
        ends[-1].get("status", "") if ends else "",
        events[-1]["time"],
    )


def lines(found: RunStanding) -> list[tuple[str, str]]:
    """What there is to tell, with a heading each."""
    progress = found.progress
    step = f"{progress.step}/{progress.steps}" + (f" of stage {progress.stage}" if progress.stage else "")
    told = [("step", step)]
    if progress.metrics:
        told.append(("metrics", progress.line()))
    if found.ended:
        told.append(("ended", found.ended))
    elif progress.doing:
        told.append(("doing", progress.doing[-1][0]))
    if found.faults:
        told.append(("faults", f"{len(found.faults)}; the last ones:"))
        told += [("", event["message"].strip().splitlines()[0]) for event in found.faults[-FAULTS:]]
    return told
