"""Runs what a study has not finished, and writes its tables."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlpipe.observe import study as shown
from rlpipe.observe.study.results import Results
from rlpipe.pipelines.exit_codes import DONE, FAILED, INTERRUPTED
from rlpipe.pipelines.study import folder as folders
from rlpipe.pipelines.study.runner import Runner
from rlpipe.recipe.study_plan import Plan, PlannedCell
from rlpipe.runtime.termination import terminated_as_interrupted

Say = Callable[[str], None]


@dataclass(frozen=True)
class Todo:
    """A cell and how it stands."""

    cell: PlannedCell
    state: str
    """`finished`, `changed` (its recipe is another than that of its row), `half-done` or `new`."""

    @property
    def finished(self) -> bool:
        return self.state == "finished"


def standing(plan: Plan, folder: Path) -> list[Todo]:
    """How every cell stands."""
    found = Results(folder)
    return [Todo(cell, _state(found, cell, shown.run_dir(folder, cell.name).exists())) for cell in plan.cells]


def _state(found: Results, cell: PlannedCell, begun: bool) -> str:
    if found.finished(cell.name, cell.digest):
        return "finished"
    if cell.name in found.rows:
        return "changed"
    return "half-done" if begun else "new"


def command(plan: Plan, cell: PlannedCell, folder: Path) -> list[str]:
    """What a cell is run with; the same works by hand."""
    debug = ["--debug"] if plan.study.debug else []
    place = str(shown.run_dir(folder, cell.name))
    return [sys.executable, "-m", "rlpipe", "run", str(plan.recipe), *cell.changes, "--run-dir", place, *debug]


def run(plan: Plan, folder: Path, parallel: int, say: Say) -> int:
    """Run the cells that are not finished, `parallel` at a time; returns the exit code."""
    folders.require_own(folder)
    with folders.locked(folder) as lock:
        folders.begin(folder, plan.study)
        todo = [one for one in standing(plan, folder) if not one.finished]
        say(f"{plan.study.name}: {len(plan.cells)} cells, {len(plan.cells) - len(todo)} finished before, "
            f"{len(todo)} to run in {folder}")  # fmt: skip
        runner = Runner(plan, folder, [one.cell for one in todo], parallel, say, lock)
        for one in todo:
            _make_room(one, folder, say)
        try:
            with terminated_as_interrupted():
                runner.run(lambda cell: command(plan, cell, folder))
            code = FAILED if runner.failed else DONE
        except KeyboardInterrupt:
            code = INTERRUPTED
        _conclude(plan, folder, runner, code, say)
    return code


def report(plan: Plan, folder: Path, say: Say) -> int:
    """Write the tables again from what is there."""
    folders.require_own(folder)
    others = [one.cell.name for one in standing(plan, folder) if one.state == "changed"]
    if others:
        say(f"not of the recipe as it is now (or as paths are on this machine), but counted: {', '.join(others)}")
    for file in shown.write(plan, folder, of_any_recipe=True):
        say(f"wrote  {file}")
    return DONE


def told(plan: Plan, folder: Path) -> str:
    """Every cell, how it stands, and its command: what `run` would do."""
    folders.require_own(folder)
    every = standing(plan, folder)
    width = max(len(one.cell.name) for one in every)
    lines = [
        f"  {one.state:<9}  {one.cell.name:<{width}}  {shlex.join(['rlpipe', *command(plan, one.cell, folder)[3:]])}"
        for one in every
    ]
    left = sum(not one.finished for one in every)
    return "\n".join([f"{plan.study.name}: {len(every)} cells in {folder}, {left} to run", *lines])


def _make_room(one: Todo, folder: Path, say: Say) -> None:
    run_dir = shown.run_dir(folder, one.cell.name)
    why = {
        "changed": "its recipe has changed, so it runs again",
        "half-done": "it was not finished, so it starts again",
    }
    if one.state in why:  # a changed cell's row stands in results.csv until the new one replaces it
        left = f"; what it left is in {folders.set_aside(folder, run_dir)}" if run_dir.exists() else ""
        say(f"{one.cell.name}: {why[one.state]}{left}")


def _conclude(plan: Plan, folder: Path, runner: Runner, code: int, say: Say) -> None:
    files = shown.write(plan, folder)
    left = sum(not one.finished for one in standing(plan, folder))
    if runner.failed:
        say(f"failed: {', '.join(runner.failed)}; the same command tries them again")
    if code == INTERRUPTED:
        say(f"stopped; {left} of {len(plan.cells)} cells are left, and the same command goes on with them")
    say("\n".join(["", *(f"  {file}" for file in files)]))
