"""Charts as inline SVG: axes from round numbers, one unit per chart, colours from the page's style sheet.

Each chart carries, in `data-x` and `data-tips`, where its points are and what hovering shows there; script.js does
the rest. Sizes are in the units of the view box, which is about one pixel.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 440, 210
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 10, 34
MOST_BARS = 120
BINS = 20
SMOOTH_FROM = 40

Format = Callable[[float], str]
Series = Mapping[int, float]


class Axis:
    """Maps values to pixels, over a range that ends on round numbers."""

    def __init__(self, low: float, high: float, start: float, end: float, ticks: int = 4, whole: bool = False):
        if high <= low:  # one value: room on both sides
            low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
        step = _round_step((high - low) / ticks)
        step = max(1.0, step) if whole else step
        self.low = math.floor(low / step + 1e-9) * step
        self.high = math.ceil(high / step - 1e-9) * step
        self.ticks = [self.low + i * step for i in range(round((self.high - self.low) / step) + 1)]
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return float(round(self._start + share * (self._end - self._start), 1))


def line_chart(series: Mapping[str, Series], form: Format, low: float | None, high: float | None) -> Markup:
    """Values by step. `low` and `high` are values the axis must reach, where honesty asks for it (0, or 1)."""
    series = {name: _finite(points) for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return Markup('<p class="empty">no finite values</p>')
    values = [value for points in series.values() for value in points.values()]
    values += [bound for bound in (low, high) if bound is not None]
    steps = sorted({step for points in series.values() for step in points})
    x = _step_axis(steps)
    y = Axis(min(values), max(values), HEIGHT - BOTTOM, TOP)
    lines = [_line(points, x, y, f"c{i}") for i, points in enumerate(series.values())]
    tips = [_tip(step, {name: points.get(step) for name, points in series.items()}, form) for step in steps]
    return _frame(x, y, form, lines, [x(step) for step in steps], tips)


def stacked_bars(parts: Mapping[str, Series], form: Format) -> Markup:
    """Per step one bar, made of named parts. Long runs are averaged over neighbouring steps."""
    steps = sorted({step for points in parts.values() for step in points})
    bins = _bins(steps)
    means = {
        name: [sum(points.get(s, 0.0) for s in steps) / len(steps) for steps in bins] for name, points in parts.items()
    }
    totals = [sum(column) for column in zip(*means.values(), strict=True)]
    x, y = _step_axis([steps[0], steps[-1] + 1]), Axis(0.0, max(totals), HEIGHT - BOTTOM, TOP)
    bars, floor = [], [0.0] * len(bins)
    for i, heights in enumerate(means.values()):
        for b, height in enumerate(heights):
            left, right = x(bins[b][0]), x(bins[b][-1] + 1)
            bars.append(_bar(left, right, y(floor[b] + height), y(floor[b]), f"f{i}"))
            floor[b] += height
    tips = [_tip(span[0], {n: h[b] for n, h in means.items()}, form, span[-1]) for b, span in enumerate(bins)]
    return _frame(x, y, form, bars, [(x(span[0]) + x(span[-1] + 1)) / 2 for span in bins], tips)


def histogram(samples: Mapping[str, Sequence[float]]) -> Markup:
    """How often each value occurs, as a share of each sample; bars of the samples side by side."""
    values = [value for sample in samples.values() for value in sample]
    margin = (max(values) - min(values)) / BINS or 0.5
    x = Axis(min(values) - margin, max(values) + margin, LEFT, WIDTH - RIGHT, ticks=8)
    edges = np.linspace(x.low, x.high, BINS + 1)
    shares = {name: np.histogram(sample, edges)[0] / len(sample) for name, sample in samples.items()}
    y = Axis(0.0, max(column.max() for column in shares.values()), HEIGHT - BOTTOM, TOP)
    slot = (x(edges[1]) - x(edges[0])) / len(samples)
    bars = [
        _bar(x(edges[b]) + i * slot, x(edges[b]) + (i + 1) * slot, y(column[b]), y(0.0), f"f{i}")
        for i, column in enumerate(shares.values())
        for b in np.flatnonzero(column)
    ]
    spans = [f"{a:.3g} to {b:.3g}" for a, b in pairwise(edges)]
    tips = ["\n".join([span, *(f"{n}: {c[b]:.1%}" for n, c in shares.items())]) for b, span in enumerate(spans)]
    centres = [(x(a) + x(b)) / 2 for a, b in pairwise(edges)]
    return _frame(x, y, lambda share: f"{share:.0%}", bars, centres, tips, x_title="reward")


def _frame(
    x: Axis, y: Axis, form: Format, marks: Sequence[Markup], hover_x: Sequence[float], tips: Sequence[str],
    x_title: str = "step",
) -> Markup:  # fmt: skip
    """Grid, axes, marks, and what hovering shows."""
    data = Markup(' data-x="{}" data-tips="{}"').format(json.dumps(list(hover_x)), json.dumps(list(tips)))
    grid = [
        Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="tick" x="{}" y="{}">{}</text>').format(
            LEFT, WIDTH - RIGHT, y(tick), y(tick), LEFT - 6, y(tick) + 3.5, tick_text(tick, form)
        )
        for tick in y.ticks
    ]
    bottom = [
        Markup('<text class="tick mid" x="{}" y="{}">{}</text>').format(x(tick), HEIGHT - BOTTOM + 15, number(tick))
        for tick in x.ticks
        if LEFT - 1 <= x(tick) <= WIDTH - RIGHT + 1
    ]
    title = Markup('<text class="tick mid" x="{}" y="{}">{}</text>').format((LEFT + WIDTH) / 2, HEIGHT - 4, x_title)
    body = Markup("").join([*grid, *bottom, title, *marks])
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img"{}>{}<line class="cursor"/></svg>').format(
        WIDTH, HEIGHT, data, body
    )


def _line(points: Series, x: Axis, y: Axis, colour: str) -> Markup:
    """A line; few points get dots, many a thick running mean over the thin raw line."""
    raw = [(x(step), y(value)) for step, value in points.items()]
    if window(len(raw)) == 1:
        dots = Markup("").join(Markup('<circle class="{}" cx="{}" cy="{}" r="2.6"/>').format(colour, *p) for p in raw)
        return _path(raw, colour) + dots
    means = running_mean(list(points.values()), window(len(raw)))
    smooth = [(px, y(mean)) for (px, _), mean in zip(raw, means, strict=True)]
    return _path(raw, f"{colour} faint") + _path(smooth, colour)


def _path(points: Sequence[tuple[float, float]], colour: str) -> Markup:
    return Markup('<polyline class="{}" points="{}"/>').format(colour, " ".join(f"{px},{py}" for px, py in points))


def _bar(left: float, right: float, top: float, bottom: float, colour: str) -> Markup:
    gap = 1.0 if right - left > 4 else 0.0
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        colour, left, top, max(right - left - gap, 0.4), max(bottom - top, 0.0)
    )


def window(count: int) -> int:
    """Steps of the running mean: a tenth of the run, an odd number; 1 where every step is drawn as it is."""
    return count // 10 | 1 if count >= SMOOTH_FROM else 1


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of `width` neighbours around each value, so that nothing is shifted; of fewer towards the ends."""
    half = width // 2
    spans = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(span) / len(span) for span in spans]


def _tip(step: int, values: Mapping[str, float | None], form: Format, last: int | None = None) -> str:
    span = f"step {step}" if last in (None, step) else f"steps {step} to {last}, mean"
    return "\n".join([span, *(f"{name}: {form(value)}" for name, value in values.items() if value is not None)])


def _bins(steps: Sequence[int]) -> list[list[int]]:
    size = -(-len(steps) // MOST_BARS)
    return [list(steps[i : i + size]) for i in range(0, len(steps), size)]


def _step_axis(steps: Sequence[int]) -> Axis:
    axis = Axis(steps[0], steps[-1], LEFT, WIDTH - RIGHT, ticks=5, whole=True)
    axis.low, axis.high = (steps[0], steps[-1]) if steps[-1] > steps[0] else (axis.low, axis.high)
    return axis


def _finite(points: Series) -> dict[int, float]:
    return {step: points[step] for step in sorted(points) if math.isfinite(points[step])}


def _round_step(raw: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)


def number(value: float) -> str:
    """A tick: `0`, `0.25`, `12k`, `3e-07`."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.0e}" if abs(value) < 1e-3 else f"{round(value, 6):g}"


def tick_text(value: float, form: Format) -> str:
    """As the metric writes percentages, else short."""
    return f"{round(value * 100, 6):g}%" if form(value).endswith("%") else number(value)


def legend(names: Sequence[str]) -> Markup:
    """Colour patches with names, in the order of the series."""
    return Markup(" ").join(
        Markup('<span class="key"><i class="f{}"></i>{}</span>').format(i, escape(name)) for i, name in enumerate(names)
    )
