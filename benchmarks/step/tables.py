"""Tables of results, for the terminal and as Markdown."""

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table

from step import contest, machine
from step.contestant import Sample

if TYPE_CHECKING:
    from step.measure import Measured

FEWEST = 3
"""Undisturbed steps that a median needs; with fewer, all steps count and the figure is marked."""
GOALS = {"trl / rlpipe": "transformers: above 1; vllm: at least 0.8", "rlpipe / floor": "at most 1.25, aim 1.1"}


@dataclass(frozen=True, slots=True)
class Grid:
    """A titled table of text; the first column is aligned left, the others right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def rich(self) -> Table:
        table = Table(title=self.title, caption=self.note or None, title_justify="left", caption_justify="left")
        for i, name in enumerate(self.header):
            table.add_column(name, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        line = ["---"] + ["---:"] * (len(self.header) - 1)
        rows = [self.header, tuple(line), *self.rows]
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        return f"### {self.title}\n\n{table}\n" + (f"\n{self.note}\n" if self.note else "")


def counted(samples: list[Sample]) -> list[Sample]:
    """The steps that count: those that other processes left alone, if there are enough."""
    calm = [sample for sample in samples if sample.others < machine.QUIET]
    return calm if len(calm) >= FEWEST else samples


def seconds(samples: list[Sample]) -> float:
    """Median of whole steps."""
    return median(sample.seconds for sample in counted(samples))


def part(samples: list[Sample], name: str) -> float:
    """Median of one part."""
    return median(sample.parts.get(name, 0.0) for sample in counted(samples))


def floor_seconds(measured: "Measured", engine: str) -> dict[str, float]:
    """The floor's parts under an engine: its pure generation, and the rest of a bare step."""
    bare = measured.samples[measured.contest.floor]
    generating = measured.samples[measured.contest.generating_floor(engine)]
    return {name: part(bare, name) for name in bare[0].parts} | {"generate": part(generating, "generate")}


def ratios(measured: "Measured", engine: str) -> dict[str, float]:
    """b/a and a/c of one engine, where both sides ran."""
    ours, theirs = (measured.samples.get(name) for name in (f"rlpipe {engine}", contest.TRL))
    found = {}
    if ours and theirs:
        found["trl / rlpipe"] = seconds(theirs) / seconds(ours)
    if ours and {measured.contest.generating_floor(engine), measured.contest.floor} <= measured.samples.keys():
        found["rlpipe / floor"] = seconds(ours) / sum(floor_seconds(measured, engine).values())
    return found


def contestants(measured: "Measured") -> Grid:
    """Every contestant's step."""
    rows = [_row(name, samples) for name, samples in measured.samples.items()]
    failed = [(name, "fails", "", "", "") for name in measured.failed]
    note = "  ".join(f"{name} fails: {words}." for name, words in measured.failed.items())
    header = ("seconds per step", "median", "fastest", "steps", "undisturbed")
    return Grid(f"{measured.case.name}: {measured.case}", header, tuple(sorted(rows) + failed), note)


def _row(name: str, samples: list[Sample]) -> tuple[str, ...]:
    calm = sum(sample.others < machine.QUIET for sample in samples)
    mark = "" if calm >= FEWEST else " (all)"
    fastest = min(sample.seconds for sample in samples)
    return name, f"{seconds(samples):.3f}{mark}", f"{fastest:.3f}", str(len(samples)), str(calm)


def comparison(results: "list[Measured]", engines: tuple[str, ...]) -> Grid:
    """The ratios that count."""
    found = {(m.case.name, engine): ratios(m, engine) for m in results for engine in engines}
    names = [name for name in GOALS if any(name in each for each in found.values())]
    rows = [
        (", ".join(who), *(f"{each[name]:.2f}" if name in each else "-" for name in names))
        for who, each in found.items()
    ]
    note = "; ".join(f"{name}: {GOALS[name]}" for name in names)
    return Grid("Ratios of medians", ("", *names), tuple(rows), f"Goals: {note}.")


PARTS = (
    ("generate", "generate"),
    ("score", "score"),
    ("prepare the batch", "prepare"),
    ("record rollouts", "record"),
    ("train", "train"),
    ("publish and verify", "publish"),
    ("rest (driver)", "rest"),
)
"""What a step is made of: title, and rlpipe's name of the phase."""


def gap(measured: "Measured", engine: str) -> Grid:
    """What our step has on top of the floor, part by part, beside TRL's parts if it took part."""
    ours = measured.samples[f"rlpipe {engine}"]
    floor, theirs = floor_seconds(measured, engine), measured.samples.get(contest.TRL, [])
    whole = seconds(ours)
    rows = [_gap_row(title, part(ours, name), floor.get(name)) for title, name in PARTS]
    bare = sum(floor.values())
    rows.append(("whole step", f"{whole:.3f}", f"{bare:.3f}", f"{whole - bare:+.3f}", f"{whole / bare - 1:+.0%}"))
    header = ("seconds, medians", "rlpipe", "floor", "more", "of the floor")
    if theirs:
        beside = [f"{part(theirs, name):.3f}" if name in theirs[0].parts else "-" for _, name in PARTS]
        header = (*header, "trl")
        rows = [(*row, trl) for row, trl in zip(rows, [*beside, f"{seconds(theirs):.3f}"], strict=True)]
    return Grid(f"{measured.case.name}, {engine}: where the step goes", header, tuple(rows))


def _gap_row(title: str, ours: float, floor: float | None) -> tuple[str, ...]:
    if floor is None:
        return title, f"{ours:.3f}", "-", f"{ours:+.3f}", "-"
    return title, f"{ours:.3f}", f"{floor:.3f}", f"{ours - floor:+.3f}", f"{ours / floor - 1:+.0%}"


def startup(title: str, runs: dict[str, dict[str, float]]) -> Grid:
    """Seconds of each part of starting up, one run per column."""
    names = list(dict.fromkeys(name for parts in runs.values() for name in parts))
    rows = [(name, *(f"{p[name]:.1f}" if name in p else "-" for p in runs.values())) for name in names]
    rows.append(("all", *(f"{sum(parts.values()):.1f}" for parts in runs.values())))
    return Grid(title, ("seconds", *runs), tuple(rows))
