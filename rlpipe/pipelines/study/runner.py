"""Cells one after the other, or several at once, each to its row or its failure."""

import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from rlpipe.observe import study as shown
from rlpipe.observe.progress import duration
from rlpipe.observe.study import measures, table
from rlpipe.observe.study.results import CELL, RECIPE, Results
from rlpipe.pipelines.study.child import Child
from rlpipe.recipe.study_plan import Plan, PlannedCell

LAST_LINES = 15
SECONDS_BETWEEN_LOOKS = 0.2
GIB = 1 << 30

Command = Callable[[PlannedCell], Sequence[str]]


class Runner:
    """Runs `todo` in `folder`. A cell that fails is told and stops no other."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        todo: Sequence[PlannedCell],
        parallel: int,
        say: Callable[[str], None],
        lock: int,
    ) -> None:
        self.failed: list[str] = []
        self._plan, self._folder, self._say, self._lock = plan, folder, say, lock
        self._results = Results(folder)
        self._waiting, self._parallel = deque(todo), parallel
        self._running: list[tuple[PlannedCell, Child]] = []
        self._count = len(plan.cells)
        self._number = self._count - len(todo)
        self._took: list[float] = []

    def run(self, command: Command) -> None:
        """Until every cell has ended. Interrupted, stops those that run, children included, and raises again."""
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < self._parallel:
                    self._start(self._waiting.popleft(), command)
                for cell, child in list(self._running):
                    self._look(cell, child)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            self._stop()

    def _start(self, cell: PlannedCell, command: Command) -> None:
        self._number += 1
        run_dir = shown.run_dir(self._folder, cell.name)
        log = run_dir.with_name(f"{cell.name}.log")
        self._say(f"[{self._number}/{self._count}] {cell.name} runs, log {log}{self._left()}")
        self._running.append((cell, Child(command(cell), run_dir, log, keep_open=[self._lock])))

    def _look(self, cell: PlannedCell, child: Child) -> None:
        code = child.poll()
        if code is None and child.silent_seconds() > self._plan.study.silence:
            child.kill()
            self._ended(cell, child, f"hung: it said nothing for {self._plan.study.silence:g} s, and was ended")
        elif code is not None:
            self._ended(cell, child, _why(code))

    def _ended(self, cell: PlannedCell, child: Child, wrong: str) -> None:
        self._running.remove((cell, child))
        self._took.append(child.seconds)
        if not wrong and shown.ran(child.run_dir) != cell.digest:
            wrong = "its recipe was changed while the study ran, so that it ran another; the same command runs it again"
        if wrong:
            self.failed.append(cell.name)
            lines = "".join(f"\n    | {line}" for line in child.last_lines(LAST_LINES))
            self._say(f"{cell.name} FAILED after {duration(child.seconds)}: {wrong}{lines}")
            return
        self._results.put(self._row(cell, child))
        self._say(f"{cell.name} finished in {duration(child.seconds)}{self._headline(cell)}{self._left()}")

    def _row(self, cell: PlannedCell, child: Child) -> dict[str, str]:
        found = measures.figures(shown.curves(child.run_dir, cell.digest), self._plan.study.samples)
        found |= {"seconds": round(child.seconds, 1)}
        found |= {"peak_memory_gib": round(child.peak_bytes / GIB, 3)} if child.peak_bytes else {}
        asked = self._plan.study.metrics
        for name in [name for name in asked if name not in found]:
            self._say(f"warning: {cell.name} measured no `{name}`; it measured {', '.join(sorted(found))}")
        names = [*table.AT_THE_END, *(asked or filter(measures.is_heldout, found))]
        figures = {name: str(found[name]) if name in found else "" for name in names}
        return {CELL: cell.name, **cell.cell.axes, RECIPE: cell.digest, **figures}

    def _headline(self, cell: PlannedCell) -> str:
        """The first figure that the table would show of it."""
        row = self._results.rows[cell.name]
        names = [n for n in table.shown_metrics([row], self._plan.axes) if n not in table.AT_THE_END]
        preferred = next((n for n in (*self._plan.study.metrics, *shown.DRAWN) if n in names), None)
        return f", {table.heading(preferred)} {table.text([row], preferred)}" if preferred else ""

    def _left(self) -> str:
        """How long the rest will take, if cells go on as they did."""
        cells = len(self._waiting) + len(self._running)
        if not self._took or not cells:
            return ""
        return f"; about {duration(sum(self._took) / len(self._took) * cells / self._parallel)} left"

    def _stop(self) -> None:
        children = [child for _, child in self._running]
        if children:
            self._say(f"stopping what runs: {', '.join(cell.name for cell, _ in self._running)}")
        try:
            for child in children:
                child.interrupt()
            for child in children:
                child.wait()
        finally:  # also when Ctrl-C is pressed again meanwhile
            for child in children:
                child.kill()


def _why(code: int) -> str:
    """What an exit code means; nothing for 0."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    return f"exit code {code}" if code else ""
