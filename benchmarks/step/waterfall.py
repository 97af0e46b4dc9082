"""One step as a waterfall: the driver's phases, the roles' calls below them, and who works while the driver waits."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from rlpipe.observe.report.charts import Axis, number
from step.command import Event
from step.tables import Grid
from step.traced import Call

DRIVER = "driver"
GAP_SECONDS = 0.02
"""Calls of the same method that follow each other more closely are one bar: an engine generates in slices."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#555555")
LEFT, WIDTH, TOP, ROW, BOTTOM = 110, 960, 40, 34, 40
STYLE = """
text { font: 12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #222; }
.tick { font-size: 11px; fill: #555; text-anchor: middle; } .lane { text-anchor: end; } .title { font-weight: 600; }
.grid { stroke: #ddd; } .in { fill: #fff; font-size: 11px; }
"""

Span = tuple[float, float]


class Bar(NamedTuple):
    """Something that went on from `begin` to `end`, seconds since the step's beginning, in `calls` calls."""

    lane: str
    what: str
    begin: float
    end: float
    calls: int = 1


def bars(events: Iterable[Event], calls: Iterable[Call], step: int, begin: float, end: float) -> list[Bar]:
    """Of the step that lasted from `begin` to `end`, in seconds since 1970."""
    phases = [
        Bar(DRIVER, e["phase"], e["time"] - e["seconds"] - begin, e["time"] - begin)
        for e in events
        if e["kind"] == "phase" and e["step"] == step and e["parent"] is None and e["time"] <= end
    ]
    inside = [Bar(c.lane, c.what, c.begin - begin, c.end - begin) for c in calls if c.begin >= begin and c.end <= end]
    lanes = dict.fromkeys(bar.lane for bar in inside)
    return phases + [bar for lane in lanes for bar in _joined([bar for bar in inside if bar.lane == lane])]


def _joined(lane: Sequence[Bar]) -> list[Bar]:
    joined: list[Bar] = []
    for bar in lane:
        last = joined[-1] if joined else None
        if last and last.what == bar.what and bar.begin - last.end < GAP_SECONDS:
            joined[-1] = last._replace(end=bar.end, calls=last.calls + 1)
        else:
            joined.append(bar)
    return joined


def timeline(title: str, found: Sequence[Bar]) -> Grid:
    """Every bar as a row."""
    rows = [
        (f"{b.lane}: {b.what}", str(b.calls), f"{b.begin:.3f}", f"{b.end:.3f}", f"{b.end - b.begin:.3f}")
        for b in sorted(found, key=lambda b: (b.lane != DRIVER, b.begin))
    ]
    return Grid(
        f"{title}: one step, in seconds from its beginning", ("", "calls", "from", "to", "seconds"), tuple(rows)
    )


def waits(title: str, found: Sequence[Bar]) -> Grid:
    """Who works in which of the driver's phases: what the driver waits for, and how long nobody works."""
    lanes = list(dict.fromkeys(b.lane for b in found if b.lane != DRIVER))
    phases = sorted((b for b in found if b.lane == DRIVER), key=lambda b: b.begin)
    rows = [_wait(phase, lanes, found) for phase in phases]
    header = ("phase", "seconds", *lanes, "no role works")
    note = f"policy and critic train at the same time for {_beside(found, 'policy', 'critic'):.3f} s."
    return Grid(
        f"{title}: who works in which phase", header, tuple(rows), note if {"policy", "critic"} <= {*lanes} else ""
    )


def _wait(phase: Bar, lanes: Sequence[str], found: Sequence[Bar]) -> tuple[str, ...]:
    window = (phase.begin, phase.end)
    busy = [covered(_spans(found, lane), window) for lane in lanes]
    anybody = covered([span for lane in lanes for span in _spans(found, lane)], window)
    length = phase.end - phase.begin
    return phase.what, f"{length:.3f}", *(f"{s:.3f}" if s else "" for s in busy), f"{length - anybody:.3f}"


def _spans(found: Sequence[Bar], lane: str) -> list[Span]:
    return [(b.begin, b.end) for b in found if b.lane == lane]


def _beside(found: Sequence[Bar], *lanes: str) -> float:
    """Seconds in which both lanes are in `update`."""
    one, other = ([(b.begin, b.end) for b in found if b.lane == lane and b.what == "update"] for lane in lanes)
    return sum(covered(one, span) for span in other)


def covered(spans: Iterable[Span], window: Span) -> float:
    """Seconds of the window in which at least one of the spans goes on."""
    total, reached = 0.0, window[0]
    for begin, end in sorted(spans):
        begin, end = max(begin, reached), min(end, window[1])
        if end > begin:
            total, reached = total + end - begin, end
    return total


def svg(title: str, found: Sequence[Bar]) -> str:
    """A drawing that stands on its own: a row per lane, time from left to right."""
    lanes = list(dict.fromkeys(bar.lane for bar in found))
    names = list(dict.fromkeys((bar.lane, bar.what) for bar in found))
    x = Axis(0.0, max(bar.end for bar in found), LEFT, WIDTH - 16, ticks=10)
    height = TOP + ROW * len(lanes) + BOTTOM
    parts = [_grid(x, height), *(_lane(lane, i) for i, lane in enumerate(lanes))]
    parts += [_bar(bar, lanes.index(bar.lane), names.index((bar.lane, bar.what)), x) for bar in found]
    head = Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}">')
    ground = Markup('<style>{}</style><rect width="100%" height="100%" fill="#fff"/>').format(Markup(STYLE))
    named = Markup('<text class="title" x="12" y="20">{}</text>').format(title)
    return str(head.format(WIDTH, height) + ground + named + Markup("").join(parts) + Markup("</svg>\n"))


def _grid(x: Axis, height: int) -> Markup:
    line = Markup(
        '<line class="grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/><text class="tick" x="{0}" y="{3}">{4}</text>'
    )
    foot = height - BOTTOM + 4
    ticks = [line.format(x(tick), TOP - 8, foot, foot + 14, number(tick)) for tick in x.ticks]
    unit = Markup('<text class="tick" x="{}" y="{}">seconds</text>').format((LEFT + WIDTH) / 2, height - 6)
    return Markup("").join([*ticks, unit])


def _lane(lane: str, i: int) -> Markup:
    return Markup('<text class="lane" x="{}" y="{}">{}</text>').format(LEFT - 8, TOP + ROW * i + 18, lane)


def _bar(bar: Bar, lane: int, name: int, x: Axis) -> Markup:
    left, width, top = x(bar.begin), max(x(bar.end) - x(bar.begin), 1.0), TOP + ROW * lane
    says = f"{bar.what} {bar.end - bar.begin:.3f} s" + (f" in {bar.calls} calls" if bar.calls > 1 else "")
    rect = Markup('<rect x="{}" y="{}" width="{:.1f}" height="24" fill="{}"><title>{}</title></rect>').format(
        left, top, width, COLOURS[name % len(COLOURS)], says
    )
    if width < 7 * len(bar.what):
        return rect
    return rect + Markup('<text class="in" x="{}" y="{}">{}</text>').format(left + 4, top + 16, bar.what)
