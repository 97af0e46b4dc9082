"""A step that samples one version ahead against one that does not: what does the overlap bring, and what could it?

    ideal = max(generate, everything else)      of the step that does not sample ahead

Both sides of a step want the cores here, so that as it is there is little to gain. With an engine on another machine,
imitated by a delay (`step.distant`), generation costs time and no cores; the delay is such that generation takes as
long as all else, where an overlap can bring most.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from step import machine, pipeline, tables
from step.command import DISTANT, TRACED
from step.contest import Contest
from step.contestant import Sample
from step.measure import Plan, Say
from step.tables import Grid
from step.work import Case

AHEAD = {0: {}, 1: {"run.max_staleness": 1, "algorithm.correction": "{kind: tis}"}}
"""What the recipe says besides, by `run.max_staleness`."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Steps that do not sample ahead, and steps that do."""

    name: str
    samples: dict[int, list[Sample]]

    @property
    def generate(self) -> float:
        """Of a step that does not sample ahead."""
        return tables.part(self.samples[0], "generate")

    @property
    def rest(self) -> float:
        return tables.seconds(self.samples[0]) - self.generate

    @property
    def ideal(self) -> float:
        return max(self.generate, self.rest)

    def row(self) -> tuple[str, ...]:
        before, after = (tables.seconds(self.samples[ahead]) for ahead in (0, 1))
        figures = (before, self.generate, self.rest, after, self.ideal)
        return self.name, *(f"{x:.3f}" for x in figures), f"{after / self.ideal:.2f}", f"{before / after:.2f}"


def measure(
    contest: Contest, cases: Sequence[Case], plan: Plan, model: Path, folder: Path, say: Say, delays: Sequence[float]
) -> Grid:
    """Every case with every engine, as it is and far away; with `delays` (seconds a token) only far away, once with
    each. Raises `ContestantFailed`."""
    pairs = []
    for case in cases:
        for engine in plan.engines if not delays else ():
            near = _pair(f"{case.name}, {engine}", TRACED, contest, case, engine, plan, model, folder, say)
            pairs.append(near)
        for turn, seconds in enumerate(delays or [near.rest / case.new_tokens], start=1):
            far = [*DISTANT, f"{seconds:.6f}"]
            name = f"{case.name}, far away {turn} ({1e3 * seconds:.1f} ms a token)"
            pairs.append(_pair(name, far, contest, case, "transformers", plan, model, folder, say))
    header = ("seconds, medians", "step at 0", "generate", "all else", "step at 1", "ideal", "1 / ideal", "0 / 1")
    note = "0, 1: run.max_staleness. ideal: the larger of generate and all else. Goal far away: 1 / ideal at most 1.10."
    return Grid("Sampling ahead", header, tuple(pair.row() for pair in pairs), note)


def _pair(
    name: str, command: list[str], contest: Contest, case: Case, engine: str, plan: Plan, model: Path, folder: Path,
    say: Say,
) -> Pair:  # fmt: skip
    samples = {}
    for ahead, changes in AHEAD.items():
        say(f"{name}: run.max_staleness={ahead}")
        machine.wait_until_quiet(plan.patience)
        changed: dict[str, Any] = contest.changes | changes
        place = folder / f"{name.split(' (')[0].replace(', ', '-').replace(' ', '-')}-{ahead}"
        run = pipeline.run(
            replace(contest, changes=changed), case, engine, model, plan.steps + 1, plan.warm_up + 2, place, command
        )
        samples[ahead] = run.samples[:-1]  # for the last one nothing is left to generate beside it
    return Pair(name, samples)
