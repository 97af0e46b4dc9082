"""study.svg: a metric against samples. One line per label, its band from the least to the most over the repeats.

All lines in one plot; where they are many, each once more in a small plot of its own, the others grey behind it. Lines
differ in colour (Okabe and Ito's, which colour-blind people tell apart), dashes and marks, so that print shows which is
which.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from markupsafe import Markup

from rlpipe.observe.report.charts import Axis, number, tick_text
from rlpipe.observe.study.measures import Point

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222", "#8a6d3b")
DASHES = ("none", "8 3", "2 2", "10 3 2 3", "5 5")
MARKS = (
    '<circle cx="{x}" cy="{y}" r="3"/>',
    '<rect x="{x0}" y="{y0}" width="6" height="6"/>',
    '<path d="M{x} {y0} L{x1} {y1} L{x0} {y1} Z"/>',
    '<path d="M{x} {y0} L{x1} {y} L{x} {y1} L{x0} {y} Z"/>',
)
MOST_MARKS, FEW_MARKS = 14, 5
FEW_LINES = 3
WIDTH, HEIGHT, LEGEND = 560, 320, 190
SMALL_WIDTH, SMALL_HEIGHT, PER_ROW = 240, 170, 3
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 30, 44

STYLE = """
text { font: 12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #222; }
.tick { font-size: 11px; fill: #555; } .end { text-anchor: end; } .mid { text-anchor: middle; }
.title { font-weight: 600; } .grid { stroke: #ddd; stroke-width: 1; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; } .grey { stroke: #ccc; stroke-width: 1.2; }
"""

Format = Callable[[float], str]


class Reach(NamedTuple):
    """A label's value after so many samples: mean, least and most over the repeats."""

    samples: float
    mean: float
    low: float
    high: float


def band(repeats: Sequence[Sequence[Point]]) -> list[Reach]:
    """Repeats laid over each other at the steps that all of them have."""
    by_step = [{point.step: point for point in points} for points in repeats]
    common = sorted(set.intersection(*map(set, by_step))) if by_step else []
    found = []
    for points in ([steps[step] for steps in by_step] for step in common):
        values = [point.value for point in points]
        samples = sum(point.samples for point in points) / len(points)
        found.append(Reach(samples, sum(values) / len(values), min(values), max(values)))
    return found


def draw(lines: Mapping[str, Sequence[Reach]], title: str, form: Format, unit: str) -> str:
    """The whole drawing, readable on its own. `unit` is that of the horizontal axis."""
    rows = -(-len(lines) // PER_ROW) if len(lines) > FEW_LINES else 0
    width = max(WIDTH + LEGEND, PER_ROW * SMALL_WIDTH)
    height = HEIGHT + rows * SMALL_HEIGHT
    parts = [_overview(lines, title, form, unit), _legend(lines, form)]
    for i, name in enumerate(lines) if rows else ():
        x, y = i % PER_ROW * SMALL_WIDTH, HEIGHT + i // PER_ROW * SMALL_HEIGHT
        parts.append(Markup('<g transform="translate({} {})">{}</g>').format(x, y, _small(lines, name, i, form)))
    head = Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}">')
    ground = Markup('<style>{}</style><rect width="100%" height="100%" fill="#fff"/>').format(Markup(STYLE))
    return str(head.format(width, height) + ground + Markup("").join(parts) + Markup("</svg>\n"))


def _overview(lines: Mapping[str, Sequence[Reach]], title: str, form: Format, unit: str) -> Markup:
    x, y = _axes(lines, WIDTH, HEIGHT, ticks=5)
    # Many bands on each other show nothing: they stand in the small plots.
    marks = [_area(reach, x, y, i) for i, reach in enumerate(lines.values()) if len(lines) <= FEW_LINES]
    marks += [_line(reach, x, y, i, MOST_MARKS) for i, reach in enumerate(lines.values())]
    named = Markup('<text class="title" x="{}" y="18">{}</text>').format(LEFT, title)
    below = Markup('<text class="mid" x="{}" y="{}">{}</text>').format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, unit)
    return _frame(x, y, form, WIDTH, HEIGHT) + named + below + Markup("").join(marks)


def _small(lines: Mapping[str, Sequence[Reach]], name: str, i: int, form: Format) -> Markup:
    x, y = _axes(lines, SMALL_WIDTH, SMALL_HEIGHT, ticks=3)
    others = [_polyline(reach, x, y, Markup('class="grey"')) for other, reach in lines.items() if other != name]
    named = Markup('<text class="title" x="{}" y="20">{}</text>').format(LEFT, name)
    own = _area(lines[name], x, y, i) + _line(lines[name], x, y, i, FEW_MARKS)
    return _frame(x, y, form, SMALL_WIDTH, SMALL_HEIGHT) + named + Markup("").join(others) + own


def _axes(lines: Mapping[str, Sequence[Reach]], width: float, height: float, ticks: int) -> tuple[Axis, Axis]:
    reaches = [reach for points in lines.values() for reach in points]
    first, last = min(r.samples for r in reaches), max(r.samples for r in reaches)
    x = Axis(first, last, LEFT, width - RIGHT, ticks, whole=True)
    if last > first:  # lines from edge to edge
        x.low, x.high, x.ticks = first, last, [tick for tick in x.ticks if first <= tick <= last]
    return x, Axis(min(r.low for r in reaches), max(r.high for r in reaches), height - BOTTOM, TOP, ticks)


def _frame(x: Axis, y: Axis, form: Format, width: float, height: float) -> Markup:
    rule = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="tick {}" x="{}" y="{}">{}</text>')
    rules = [
        rule.format(LEFT, width - RIGHT, y(t), y(t), "end", LEFT - 6, y(t) + 4, tick_text(t, form)) for t in y.ticks
    ]
    foot = height - BOTTOM
    rules += [rule.format(x(t), x(t), foot, foot + 4, "mid", x(t), foot + 17, number(t)) for t in x.ticks]
    return Markup("").join(rules)


def _area(points: Sequence[Reach], x: Axis, y: Axis, i: int) -> Markup:
    there = [f"{x(p.samples)},{y(p.high)}" for p in points]
    back = [f"{x(p.samples)},{y(p.low)}" for p in reversed(points)]
    area = Markup('<polygon points="{}" fill="{}" opacity="0.2"/>')
    return area.format(" ".join(there + back), COLOURS[i % len(COLOURS)])


def _line(points: Sequence[Reach], x: Axis, y: Axis, i: int, most_marks: int) -> Markup:
    colour = COLOURS[i % len(COLOURS)]
    look = Markup('stroke="{}" stroke-dasharray="{}"').format(colour, DASHES[i % len(DASHES)])
    every = -(-len(points) // most_marks)
    marks = [_mark(x(p.samples), y(p.mean), i) for p in islice(points, 0, None, every)]
    group = Markup('<g fill="#fff" stroke="{}" stroke-width="1.5">{}</g>').format(colour, Markup("").join(marks))
    return _polyline(points, x, y, look) + group


def _polyline(points: Sequence[Reach], x: Axis, y: Axis, look: Markup) -> Markup:
    return Markup('<polyline {} points="{}"/>').format(look, " ".join(f"{x(p.samples)},{y(p.mean)}" for p in points))


def _mark(x: float, y: float, i: int) -> Markup:
    return Markup(MARKS[i % len(MARKS)].format(x=x, y=y, x0=x - 3, x1=x + 3, y0=y - 3, y1=y + 3))


def _legend(lines: Mapping[str, Sequence[Reach]], form: Format) -> Markup:
    """A piece of each line with its name and its last mean, in the lines' order."""
    entries = []
    for i, (name, points) in enumerate(lines.items()):
        y = TOP + 8 + 18 * i
        look = 'stroke="{}" stroke-width="2" stroke-dasharray="{}" fill="#fff"'
        piece = Markup("<g " + look + '><line x1="{}" x2="{}" y1="{}" y2="{}"/>{}</g>').format(
            COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)], WIDTH + 4, WIDTH + 34, y, y, _mark(WIDTH + 19, y, i)
        )
        words = Markup('<text x="{}" y="{}">{}</text>').format(WIDTH + 40, y + 4, f"{name}  {form(points[-1].mean)}")
        entries.append(piece + words)
    return Markup("").join(entries)
