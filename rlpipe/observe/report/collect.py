"""Reads a run directory into what the report shows, one `Stage` per events.jsonl."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlpipe.data.storage import Storage
from rlpipe.observe import comparison, events, rollouts
from rlpipe.observe.console import check_line
from rlpipe.observe.events import Event

Series = dict[int, float]
"""Value by step. Of a step that was done again after a resume, the last value stands."""


@dataclass
class Stage:
    """One stage of a pipeline, or the whole of a run that has none."""

    name: str
    metrics: dict[str, Series] = field(default_factory=lambda: defaultdict(dict))
    heldout: dict[str, Series] = field(default_factory=lambda: defaultdict(dict))
    evaluations: list[Event] = field(default_factory=list)
    comparison: dict[str, Any] | None = None
    """Of several models on the same prompts; see `observe.comparison`."""
    step_phases: dict[int, dict[str, float]] = field(default_factory=dict)
    """Seconds of each phase, by step."""
    open_phases: list[Event] = field(default_factory=list)
    """Phases of which it is not yet known whether they belong to a step that was finished."""
    other_phases: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Phases outside steps: the seconds of each, by what it says."""
    engines: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    """What each rollout engine did, step by step."""
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    started: Event = field(default_factory=dict)
    finished: Event = field(default_factory=dict)
    first_time: float = 0.0
    last_time: float = 0.0
    rollouts: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows of the first and of the last step's rollouts."""
    token_text: Callable[[int], str] = lambda token: f"⟨{token}⟩"

    @property
    def status(self) -> str:
        return self.finished.get("status", "unfinished")

    @property
    def seconds(self) -> float:
        return self.last_time - self.first_time


def stages(storage: Storage) -> list[Stage]:
    """The stages of a run, in the order in which they began; a run without a pipeline is one stage."""
    folders = _folders(storage)
    found = [_stage(name.removeprefix("stages/"), storage.folder(name)) for name in folders]
    if not found:
        found = [_stage("", storage)]
    return sorted(found, key=lambda stage: stage.first_time)


def stage_folders(storage: Storage) -> list[Storage]:
    """Where the stages of a run keep their events, in the order in which they began."""
    found = [storage.folder(name) for name in _folders(storage)] or [storage]
    read = {str(folder): events.read(folder)[0] for folder in found}
    return sorted((f for f in found if read[str(f)]), key=lambda folder: read[str(folder)][0]["time"])


def _folders(storage: Storage) -> list[str]:
    return [name.removesuffix(f"/{events.NAME}") for name in storage.names(f"stages/*/{events.NAME}")]


def _stage(name: str, storage: Storage) -> Stage:
    found, torn = events.read(storage)
    stage = Stage(name, warnings=torn, comparison=comparison.read(storage))
    for event in found:
        _add(stage, event)
    _close(stage)
    if found:
        stage.first_time, stage.last_time = found[0]["time"], found[-1]["time"]
    steps = rollouts.steps(storage)
    stage.rollouts = {step: rollouts.read(storage, step) for step in dict.fromkeys(steps[:1] + steps[-1:])}
    stage.token_text = _token_text(storage) or stage.token_text
    return stage


def _add(stage: Stage, event: Event) -> None:
    match event["kind"]:
        case "run_started":
            _close(stage)
            stage.started, stage.finished = event, {}
        case "run_finished":
            stage.finished = event
        case "metrics":
            for name, value in event["metrics"].items():
                stage.metrics[name][event["step"]] = value
            if phases := [phase for phase in stage.open_phases if phase["step"] == event["step"]]:
                stage.step_phases[event["step"]] = _seconds(phases)
                stage.open_phases = [phase for phase in stage.open_phases if phase not in phases]
        case "evaluation" if "model" not in event:  # else of several models, which are compared elsewhere
            _add_evaluation(stage.evaluations, event)
            for name, value in event["metrics"].items():
                stage.heldout[name][event["step"]] = value
        case "engines":
            for engine in event["engines"]:
                stage.engines[engine["name"]].append(engine)
        case "phase" if event["parent"] is None:
            stage.open_phases.append(event)
        case "fault":
            where = "" if event["step"] is None else f"step {event['step']}: "
            stage.faults.append(where + event["message"])
        case "check" if event["status"] == "warn":
            stage.warnings.append(check_line(event))
        case "warning":
            stage.warnings.append(event["message"])


def _add_evaluation(evaluations: list[Event], event: Event) -> None:
    """Two of one step are one: what a trainer says of held-out records, and what the model answers them."""
    last = evaluations[-1] if evaluations else None
    if last is None or last["step"] != event["step"]:
        evaluations.append(event)
    else:
        samples = event["samples"] or last["samples"]
        evaluations[-1] = last | event | {"metrics": last["metrics"] | event["metrics"], "samples": samples}


def _close(stage: Stage) -> None:
    """What is left when a stage, or one life of it, ends: start-up, evaluations, a step that was not finished."""
    for phase in stage.open_phases:
        stage.other_phases[phase["says"]].append(phase["seconds"])
    stage.open_phases = []


def _seconds(phases: list[Event]) -> dict[str, float]:
    seconds: dict[str, float] = defaultdict(float)
    for phase in phases:
        seconds[phase["phase"]] += phase["seconds"]
    return dict(seconds)


def milestones(stages: Sequence[Stage]) -> list[tuple[str, Event]]:
    """The evaluations that tell what a run did: (`base`, before anything), then one after each stage."""
    measured = [stage for stage in stages if stage.evaluations]
    if not measured:
        return []
    trained = [stage for stage in measured if stage.evaluations[-1]["step"] > 0]
    last = [(f"after {stage.name}" if stage.name else "trained", stage.evaluations[-1]) for stage in trained]
    first = measured[0].evaluations[0]
    return last if last and first is last[0][1] else [("base", first), *last]


def same_questions(found: Sequence[tuple[str, Event]]) -> bool:
    """Whether milestones compare: the same prompts, judged by the same rewards. Runs from before that was noted do."""
    return len({event["asked"] for _, event in found if "asked" in event}) <= 1


def problem_of(sample: dict[str, Any]) -> tuple[str, str]:
    """What tells one held-out problem from another: a prompt may be that of several, as in a game with a secret."""
    return sample["prompt"], json.dumps(sample.get("columns", {}), sort_keys=True, default=str)


def _token_text(storage: Storage) -> Callable[[int], str] | None:
    """How single tokens read, by the tokenizer that stands beside the run's weights."""
    names = storage.names("**/tokenizer.json")
    if not names:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(storage.read(names[0]))
    return lambda token: tokenizer.decode([token], skip_special_tokens=False)
