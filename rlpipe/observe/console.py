"""What a person sees while a run goes: a live view on a terminal, one line per step elsewhere (CI, logs, --debug).

console = console_view(debug=False)      # one for all stages of a pipeline
log = EventLog(storage, stage="grpo", views=[console, ...])
"""

import threading
import time
from itertools import pairwise

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlpipe.observe.events import Event, View
from rlpipe.observe.progress import Progress, duration, evaluation_line, is_heldout, is_step

COLOURS = ("blue", "green", "yellow", "magenta", "cyan", "red", "white")
BARS = "▁▂▃▄▅▆▇█"
BAR_WIDTH, SHARE_WIDTH = 40, 30
"""Of bars, where the terminal has room for what stands beside them."""
BESIDE_BAR, BESIDE_SHARES = 60, 70
LONG_PHASE_SECONDS = 5.0
SECONDS_OF_SILENCE = 30.0
"""After which a phase says how far it is, where nothing is redrawn."""


def console_view(debug: bool, console: Console | None = None) -> View:
    """The live view where it can be drawn and no debugger may want the terminal for itself; else the plain one."""
    console = console or Console()
    live = console.is_terminal and not console.is_dumb_terminal and not debug
    return LiveView(console) if live else PlainView(console)


class PlainView:
    """One line per step, evaluation, fault, and per start-up phase as it begins and ends; in long ones now and then how
    far they are."""

    def __init__(self, console: Console):
        self._console = console
        self._progress = Progress()
        self._told = 0.0
        """When the last line was printed, in the events' clock."""

    def __call__(self, event: Event) -> None:
        if event.get("stage", "") != self._progress.stage:
            self._progress = Progress(event.get("stage", ""))
        self._progress.update(event)
        for line in self._lines(event):
            self._told = event["time"]
            prefix = f"[{self._progress.stage}] " if self._progress.stage else ""
            self._console.print(prefix + line, markup=False, highlight=False, soft_wrap=True)

    def _lines(self, event: Event) -> list[str]:
        match event["kind"]:
            case "phase_started" if event["step"] is None and event["parent"] is None:
                return [f"{event['says']} ..."]
            case "phase" if event["step"] is None and event["parent"] is None:
                return [f"{event['says']}: {duration(event['seconds'])}"]
            case "metrics" if is_step(event):
                return [self._step_line()]
            case "progress" if self._told and event["time"] - self._told >= SECONDS_OF_SILENCE:
                return [event["says"]]
        return lasting_lines(event)

    def _step_line(self) -> str:
        progress = self._progress
        parts = [f"step {progress.step}/{progress.steps}", progress.line()]
        if shares := progress.shares():
            parts.append("(" + ", ".join(f"{name} {share:.0%}" for name, share in shares) + ")")
        if (left := progress.seconds_left()) is not None:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)


class LiveView:
    """A few lines at the bottom of the terminal, redrawn four times a second; what should stay is printed above."""

    def __init__(self, console: Console):
        self._console = console
        self._progress = Progress()
        self._live: Live | None = None
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if event.get("stage", "") != self._progress.stage:
                self._progress = Progress(event.get("stage", ""))
            self._progress.update(event)
        for line in lasting_lines(event) + self._long_phase(event):
            style = {"fault": "red", "warning": "yellow"}.get(event["kind"], "")
            stage = f"[bold]{escape(self._progress.stage)}[/]  " if self._progress.stage else ""
            self._console.print(Text.from_markup(stage) + Text(line, style))
        if event["kind"] == "run_finished":
            self.close()
        elif self._live is None:
            self._live = Live(self, console=self._console, refresh_per_second=4, transient=True)
            self._live.start()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _long_phase(self, event: Event) -> list[str]:
        """Start-up that took its time stays readable above the live lines."""
        long = event["kind"] == "phase" and event["step"] is None and event["seconds"] >= LONG_PHASE_SECONDS
        return [f"{event['says']}: {duration(event['seconds'])}"] if long else []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            yield self._drawn(options.max_width)

    def _drawn(self, width: int) -> Group:
        progress = self._progress
        rows = [
            ("", self._bar(_room(width, BESIDE_BAR, BAR_WIDTH))),
            ("", Text(progress.line())),
            (progress.headline, self._curve()),
            ("held-out", self._heldout()),
        ]
        rows += [
            ("step", self._step_shares(_room(width, BESIDE_SHARES, SHARE_WIDTH))),
            ("sample", self._sample()),
            ("now", self._doing()),
        ]
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True, min_width=8)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for name, content in rows:
            if content:
                table.add_row(name, content)
        return Group(table)

    def _bar(self, width: int) -> Table | None:
        progress = self._progress
        if not progress.steps:
            return None
        row = Table.grid(padding=(0, 2))
        cells = [Text(progress.stage or progress.task, "bold")]
        cells += [ProgressBar(progress.steps, progress.step, width=width), f"{progress.step}/{progress.steps}"]
        if (per_step := progress.seconds_per_step()) is not None:
            cells.append(f"{per_step:.2f} s/step")
        if (left := progress.seconds_left()) is not None:
            cells.append(f"{duration(left)} left")
        row.add_row(*cells)
        return row

    def _curve(self) -> Text | None:
        values = self._progress.curve
        return Text(f"{sparkline(values, 40)}  {values[0]:.3f} to {values[-1]:.3f}", "green") if values else None

    def _heldout(self) -> Text | None:
        evaluations = self._progress.evaluations
        if not evaluations:
            return None
        last = evaluations[-1]
        of = last.get("model") or f"step {last['step']}"
        return Text(f"{of}: {evaluation_line(last)}")

    def _step_shares(self, width: int) -> Text | None:
        shares = self._progress.shares()
        coloured = [(name, share, COLOURS[i % len(COLOURS)]) for i, (name, share) in enumerate(shares)]
        bar = [("█" * round(share * width), colour) for _, share, colour in coloured]
        legend = [(f"  {name} {share:.0%}", colour) for name, share, colour in coloured if round(share * 100)]
        return Text.assemble(*bar, *legend) if shares else None

    def _sample(self) -> Text | None:
        sample = self._progress.sample
        if sample is None:
            return None
        outcome = f"{sample['reward']:.2f}" if sample.get("reward") is not None else sample.get("failure", "")
        return Text.assemble(f"{sample['prompt'][-40:]!r} ", ("→ ", "dim"), f"{sample['completion'][:60]!r}  {outcome}")

    def _doing(self) -> Text | None:
        if not self._progress.doing:
            return None
        says = " › ".join(says for says, _ in self._progress.doing) + f" {self._progress.done}".rstrip()
        return Text(f"{says} · {duration(time.time() - self._progress.doing[-1][1])}", "cyan")


def _room(width: int, beside: int, most: int) -> int:
    """Columns of a bar in a terminal of `width`, where so many are taken by what stands `beside` it."""
    return min(most, max(width - beside, 8))


def lasting_lines(event: Event) -> list[str]:
    """What both views print to stay: evaluations, faults, and the end."""
    match event["kind"]:
        case "evaluation" if "model" in event:
            return [f"{event['model']}: {evaluation_line(event)}"]
        case "evaluation" | "metrics" if is_heldout(event):
            return [f"held-out, step {event['step']}: {evaluation_line(event)}"]
        case "fault" if not event["fatal"]:  # a fatal one ends the run, whose last words it is
            where = "" if event["step"] is None else f" in step {event['step']}"
            return [f"FAULT{where}: {event['message']}"]
        case "note":
            return [event["message"]]
        case "check" if event["status"] == "warn":
            return [f"warning: {check_line(event)}"]
        case "warning":
            return [f"warning: {event['message']}"]
        case "run_finished":
            message = f": {event['message']}" if event["message"] else ""
            return [f"{event['status']} after {duration(event['seconds'])}{message}"]
    return []


def check_line(event: Event) -> str:
    """What preflight warns of."""
    return f"preflight, {event['name']}: {event['detail']}; to mend: {event['fix']}"


def sparkline(values: list[float], width: int) -> str:
    """The values, averaged down to `width` characters, scaled between their smallest and largest."""
    if len(values) > width:
        edges = [i * len(values) // width for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(BARS[min(int((value - low) / span * len(BARS)), len(BARS) - 1)] for value in values)
