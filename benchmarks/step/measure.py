"""Who runs when: contestants step in turn, and rlpipe's runs stand between their turns."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from step import machine, pipeline
from step.contest import Contest
from step.contestant import Contestant, ContestantFailed, Sample
from step.waterfall import Bar
from step.work import Case

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    engines: tuple[str, ...]
    steps: int
    """Steps of each contestant per turn, and half of those of an rlpipe run."""
    warm_up: int
    """Steps of each contestant that do not count."""
    patience: float
    """Seconds to wait for a quiet machine before a turn."""


@dataclass(slots=True)
class Measured:
    """One case: samples by contestant (`rlpipe vllm`, `floor vllm`, `trl`, ...), and who failed, in its words."""

    contest: Contest
    case: Case
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    startup: dict[str, dict[str, float]] = field(default_factory=dict)
    """Seconds of each part until the first step of `rlpipe ENGINE` was done."""
    waterfalls: dict[str, list[Bar]] = field(default_factory=dict)
    """One step of `rlpipe ENGINE`."""


def measure(contest: Contest, case: Case, plan: Plan, model: Path, logs: Path, say: Say) -> Measured:
    """Everything about one case."""
    measured = Measured(contest, case)
    for name in contest.once:
        say(f"{case.name}: {name}")
        with _started([name], measured, model, logs) as contestants:
            _turn(contestants, 2, measured, say)
    say(f"{case.name}: starting {', '.join(contest.stepping)}")
    with _started(contest.stepping, measured, model, logs) as contestants:
        _warm_up(contestants, plan.warm_up, measured)
        for engine in plan.engines:
            machine.wait_until_quiet(plan.patience)
            _turn(contestants, plan.steps, measured, say)
            machine.wait_until_quiet(plan.patience)
            _rlpipe(engine, plan, measured, model, logs, say)
        machine.wait_until_quiet(plan.patience)
        _turn(contestants, plan.steps, measured, say)
    return measured


@contextmanager
def _started(names: Sequence[str], measured: Measured, model: Path, logs: Path) -> Iterator[list[Contestant]]:
    """The contestants that start; one after the other, as nothing is measured yet and memory peaks while starting."""
    contestants: list[Contestant] = []
    try:
        for name in names:
            contestant = Contestant(name, measured.case, model, logs)
            contestants.append(contestant)
            _unless_it_fails(contestants, contestant, measured, contestant.wait_until_ready)
            measured.settings[name] = contestant.settings
        yield contestants
    finally:
        for contestant in contestants:
            contestant.close()


def _warm_up(contestants: list[Contestant], steps: int, measured: Measured) -> None:
    for contestant in list(contestants):
        for _ in range(steps):
            if contestant in contestants:
                _unless_it_fails(contestants, contestant, measured, contestant.step)


def _turn(contestants: list[Contestant], steps: int, measured: Measured, say: Say) -> None:
    for step in range(steps):
        for contestant in list(contestants):
            sample = _unless_it_fails(contestants, contestant, measured, contestant.step)
            if sample:
                measured.samples.setdefault(contestant.name, []).append(sample)
        say(f"{measured.case.name}: step {step + 1} of {steps} of {', '.join(c.name for c in contestants) or 'nobody'}")


def _unless_it_fails(
    contestants: list[Contestant], contestant: Contestant, measured: Measured, act: Callable[[], Any]
) -> Any:
    """What `act` returns; a contestant that fails leaves the field, and what it said is kept."""
    try:
        return act()
    except ContestantFailed as error:
        measured.failed[contestant.name] = str(error)
        contestants.remove(contestant)
        contestant.close()
        return None


def _rlpipe(engine: str, plan: Plan, measured: Measured, model: Path, logs: Path, say: Say) -> None:
    name, case = f"rlpipe {engine}", measured.case
    say(f"{case.name}: {name}")
    directory = logs / f"{case.name}-rlpipe-{engine}"
    try:
        run = pipeline.run(measured.contest, case, engine, model, 2 * plan.steps, plan.warm_up + 1, directory)
    except ContestantFailed as error:
        measured.failed[name] = str(error)
        return
    measured.samples[name] = run.samples
    measured.startup[name] = run.startup
    measured.waterfalls[name] = run.waterfall
