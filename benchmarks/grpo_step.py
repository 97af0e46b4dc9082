"""How fast is one GRPO step: rlpipe, TRL, and the floor under both, in one run on one machine.

    python benchmarks/grpo_step.py --help

What is measured and how to read it: benchmarks/README.md.
"""

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer import Option

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from grpo import machine, startup, tables, work  # noqa: E402
from grpo.command import environment  # noqa: E402
from grpo.contestant import ContestantFailed  # noqa: E402
from grpo.measure import Measured, Plan, measure  # noqa: E402
from grpo.tables import Grid  # noqa: E402

ENGINES = ("vllm", "transformers")
RESULTS = Path(__file__).parent / "results"
console = Console()
app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings={"max_content_width": 110})


@app.command()
def main(
    case: Annotated[str, Option(help="short (256 samples of 16 tokens), long (64 of 128), or both.")] = "both",
    engine: Annotated[str, Option(help="rlpipe's engine: vllm, transformers, or both.")] = "both",
    steps: Annotated[int, Option(help="Steps of each contestant per turn; one turn more than engines.")] = 5,
    patience: Annotated[float, Option(help="Seconds to wait for idle cores, before each turn.")] = 60.0,
    with_startup: Annotated[bool, Option("--startup/--no-startup", help="Measure how long starting takes.")] = True,
    other_trl: Annotated[bool, Option(help="Also TRL's static cache and continuous batching, slower by far.")] = False,
    quick: Annotated[bool, Option(help="A shrunk run: tiny cases, one step. Its figures mean nothing.")] = False,
    out: Annotated[Path, Option(help="Folder for grpo_step.json and grpo_step.md.")] = RESULTS,
    keep: Annotated[Path | None, Option(help="Keep model, logs and run directories here.")] = None,
) -> None:
    """Time one GRPO step of rlpipe against TRL's GRPOTrainer and against the floor: pure generation plus a bare torch
    training step, with the same model, prompts, group size, lengths, cores and seeds.

    Prints medians, the ratios TRL / rlpipe and rlpipe / floor for each engine and length, what our step has on top of
    the floor part by part, and what starting up is made of. Contestants step in turn, so that whatever else the machine
    does hits all alike; steps that other processes disturbed do not count as long as enough others remain.

    \b
    python benchmarks/grpo_step.py            everything
    python benchmarks/grpo_step.py --quick    a shrunk run: does all of it work?
    python benchmarks/grpo_step.py --case short --engine transformers --no-startup
    """
    engines = _chosen(engine, ENGINES, "--engine")
    lengths = _chosen(case, ("short", "long"), "--case")
    cases = [c for c in (work.QUICK_CASES if quick else work.CASES) if c.name in lengths]
    plan = Plan(engines, 1 if quick else steps, 0 if quick else 2, 0.0 if quick else patience, other_trl)
    with tempfile.TemporaryDirectory(prefix="grpo-step-") as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / "model"
        work.build_model(model)
        results = [measure(case, plan, model, folder, _say) for case in cases]
        report = Report(engines, results, _startup(results, model, folder) if with_startup else [])
    for grid in report.grids():
        console.print(grid.rich(), "")
    report.write(out)
    console.print(f"Written: {out}/grpo_step.json and .md")
    if any(name.startswith("rlpipe") for measured in results for name in measured.failed):
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found."""

    engines: tuple[str, ...]
    results: list[Measured]
    startup: list[Grid]

    def grids(self) -> list[Grid]:
        found = [tables.comparison(self.results, self.engines)]
        for measured in self.results:
            found.append(tables.contestants(measured))
            found += [tables.gap(measured, e) for e in self.engines if "rlpipe / floor" in tables.ratios(measured, e)]
        return found + self.startup

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "grpo_step.json").write_text(json.dumps(self._data(), indent=1, default=str) + "\n")
        about = ", ".join(f"{k} {v}" for k, v in machine.describe().items() if k != "versions")
        versions = ", ".join(f"{k} {v}" for k, v in machine.describe()["versions"].items())
        head = f"# One GRPO step\n\n`python benchmarks/grpo_step.py`, {datetime.now():%Y-%m-%d}. {about}; {versions}.\n"
        (folder / "grpo_step.md").write_text("\n".join([head, *(grid.markdown() for grid in self.grids())]))

    def _data(self) -> dict[str, Any]:
        return {
            "machine": machine.describe(),
            "environment": {name: environment()[name] for name in machine.SHARED_CORES | machine.ENVIRONMENT},
            "cases": [asdict(measured) for measured in self.results],
            "ratios": {m.case.name: {e: tables.ratios(m, e) for e in self.engines} for m in self.results},
            "startup": [asdict(grid) for grid in self.startup],
        }


def _startup(results: list[Measured], model: Path, folder: Path) -> list[Grid]:
    """What starting is made of: of the runs just measured, of the demo, and of each part alone."""
    _say("start-up: the demo, then each part alone")
    title = "`rlpipe run` to the end of the first step"
    found = [tables.startup(f"{m.case.name}: {title}", m.startup) for m in results if m.startup]
    try:
        found.append(tables.startup("The demo, to its first training steps", startup.demo(folder / "demo")))
        found.append(tables.startup("Each part started alone", startup.pieces(model)))
    except ContestantFailed as error:
        _say(f"start-up: {error}")
    return found


def _chosen(text: str, names: tuple[str, ...], option: str) -> tuple[str, ...]:
    if text != "both" and text not in names:
        raise typer.BadParameter(f"expected {', '.join(names)} or both", param_hint=option)
    return names if text == "both" else (text,)


def _say(what: str) -> None:
    console.print(what, style="dim", markup=False, highlight=False)


if __name__ == "__main__":
    os.environ.update(environment())
    app()
