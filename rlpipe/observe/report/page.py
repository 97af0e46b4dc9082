"""Arranges stages into the page: which charts, which tables, and what they say."""

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from markupsafe import Markup

from rlpipe.observe.comparison import PAGE, measures
from rlpipe.observe.metrics import METRICS, SIZES, label
from rlpipe.observe.report import charts
from rlpipe.observe.report.collect import Stage, milestones, same_questions
from rlpipe.observe.report.samples import comparison, token_rows
from rlpipe.observe.templates import template, texts

FIRST = ("reward", "loss", "reference_kl", "mismatch/abs", "response_length", "entropy", "tokens_per_second")
"""Curves that are shown at the top, in this order; the others follow folded."""
HEADLINE = {
    "rl": ("reward", "reference_kl", "response_length", "tokens_per_second"),
    "sft": ("loss", "tokens_per_second"),
    "reward_model": ("loss", "margin"),
    "dpo": ("loss", "rewards/margins"),
    "kto": ("loss", "rewards/margins"),
    "orpo": ("loss", "rewards/margins"),
    "cpo": ("loss", "rewards/margins"),
}
FROM_ZERO = {"reference_kl", "policy_kl", "mismatch/abs", "response_length", "entropy", "tokens_per_second"}
FROM_ZERO |= {"step_seconds", "grad_norm", "learning_rate", "clip_fraction", "truncated", "reward_failures"}
FROM_ZERO |= {"kl_coefficient", "groups_dropped", "correction/cut", "value/loss", "value/clip_fraction"}
LEAST_REST = 0.02


@dataclass(frozen=True)
class Chart:
    """A titled chart; `last` is the newest value in words."""

    title: str
    unit: str
    svg: Markup
    last: str = ""
    legend: Markup | None = None


def render(stages: Sequence[Stage], title: str) -> str:
    """The page of a run."""
    return template("page.html").render(
        title=title,
        style=Markup(texts()["style.css"] + texts()["comparison.css"]),
        script=Markup(texts()["script.js"]),
        stages=[_view(stage) for stage in stages],
        overview=_overview(stages),
        seconds=stages[-1].last_time - stages[0].first_time,
        began=stages[0].first_time,
        info=stages[0].started,
        command=shlex.join(stages[0].started.get("command", [])),
    )


def _view(stage: Stage) -> dict[str, Any]:
    """What the template shows of one stage."""
    heldout = _heldout_chart(stage)
    top = [_metric_chart(stage, name) for name in FIRST if name in stage.metrics]
    parts = [name for name in sorted(stage.metrics) if name.startswith("reward/")]
    rest = [n for n in (*METRICS, *sorted(stage.metrics)) if n in stage.metrics and n not in (*FIRST, *parts, *SIZES)]
    return {
        "name": stage.name,
        "status": stage.status,
        "seconds": stage.seconds,
        "task": stage.started.get("task", ""),
        "recipe": json.dumps(stage.started.get("recipe", {}), indent=2, ensure_ascii=False),
        "faults": stage.faults,
        "warnings": stage.warnings,
        "headline": _headline(stage),
        "charts": [chart for chart in (heldout, *top, _component_chart(stage, parts), _histogram(stage)) if chart],
        "more": [_metric_chart(stage, name) for name in dict.fromkeys(rest)],
        "smoothed": charts.window(max(map(len, stage.metrics.values()), default=0)),
        "waterfall": _waterfall(stage),
        "other_phases": _other_phases(stage),
        "engines": _engines(stage),
        "compared": measures(stage.comparison) if stage.comparison else None,
        "beside": f"stages/{stage.name}/{PAGE}" if stage.name else PAGE,
        "comparison": comparison(stage),
        "rollouts": token_rows(stage),
        "last_step": max(stage.rollouts, default=None),
    }


def _overview(stages: Sequence[Stage]) -> list[tuple[str, str, float]]:
    """Held-out accuracy from stage to stage, where a pipeline measures it: (stage, in words, share of the bar)."""
    found = [(name, event) for name, event in milestones(stages) if "accuracy" in event["metrics"]]
    if not same_questions(found):
        return []
    shares = {name: event["metrics"]["accuracy"] for name, event in found}
    bars = [(n, label("accuracy").number(s), s if math.isfinite(s) else 0.0) for n, s in shares.items()]
    return bars if len(stages) > 1 and len(bars) > 1 else []


def _headline(stage: Stage) -> list[tuple[str, str, str]]:
    """The few numbers that sum a stage up: (title, at the end, at the start)."""
    names = HEADLINE.get(stage.started.get("task", ""), FIRST)
    judged = ("accuracy", "pair_accuracy", "length_baseline")
    heldout = [*judged, *(["failures"] if any(stage.heldout.get("failures", {}).values()) else [])]
    found = [(label(n).title, label(n), stage.heldout[n]) for n in heldout if n in stage.heldout]
    found += [(label(n).title, label(n), stage.metrics[n]) for n in names if n in stage.metrics]
    return [(title, about.text(s[max(s)]), about.text(s[min(s)])) for title, about, s in found]


def _metric_chart(stage: Stage, name: str) -> Chart:
    series, about = stage.metrics[name], label(name)
    svg = charts.line_chart({about.short: series}, _form(name), 0.0 if name in FROM_ZERO else None, None)
    return Chart(_capital(about.title), about.unit, svg, about.number(series[max(series)]))


def _heldout_chart(stage: Stage) -> Chart | None:
    """Accuracy and pass@k over training; of a reward model accuracy on pairs, beside that of counting tokens; the
    reward where a task has no notion of right."""
    names = ("accuracy", "pair_accuracy", "length_baseline")
    shares = {n: s for n, s in stage.heldout.items() if n in names or n.startswith("pass@")}
    if shares:
        svg = charts.line_chart(shares, _form("accuracy"), 0.0, 1.0)
    elif "reward" in stage.heldout:
        shares = {"reward": stage.heldout["reward"]}
        svg = charts.line_chart(shares, _form("reward"), None, None)
    else:
        return None
    name, series = next(iter(shares.items()))
    title = "Held-out reward" if name == "reward" else _capital(label(name).title)
    return Chart(
        title,
        "",
        svg,
        label(name).number(series[max(series)]),
        charts.legend(list(shares)) if len(shares) > 1 else None,
    )


def _component_chart(stage: Stage, names: Sequence[str]) -> Chart | None:
    if len(names) < 2:
        return None
    series = {name.removeprefix("reward/"): stage.metrics[name] for name in names}
    return Chart("Reward by component", "unweighted mean", charts.line_chart(series, _form("reward"), None, None),
                 legend=charts.legend(list(series)))  # fmt: skip


def _histogram(stage: Stage) -> Chart | None:
    samples = {
        f"step {step}": [row["reward"] for row in rows if row["reward"] is not None]
        for step, rows in stage.rollouts.items()
    }
    samples = {name: values for name, values in samples.items() if values}
    if not samples:
        return None
    return Chart("Rewards of responses", "share", charts.histogram(samples), legend=charts.legend(list(samples)))


def _waterfall(stage: Stage) -> dict[str, Any] | None:
    """Seconds per phase and step. What no phase accounts for is shown as such."""
    if not stage.step_phases:
        return None
    names = dict.fromkeys(name for phases in stage.step_phases.values() for name in phases)
    parts = {name: {s: p.get(name, 0.0) for s, p in stage.step_phases.items()} for name in names}
    rest = _rest(stage)
    if sum(rest.values()) > LEAST_REST * sum(sum(series.values()) for series in parts.values()):
        parts["outside phases"] = rest
    middle = {name: median(series.values()) for name, series in parts.items()}
    total = sum(middle.values()) or 1.0
    return {
        "svg": charts.stacked_bars(parts, lambda seconds: f"{seconds:.3g} s"),
        "rows": [(name, seconds, seconds / total) for name, seconds in middle.items()],
    }


def _other_phases(stage: Stage) -> list[tuple[str, int, float, float]]:
    """Start-up, evaluations and the like: (what, how often, seconds in all, share of the longest)."""
    longest = max((sum(seconds) for seconds in stage.other_phases.values()), default=0.0) or 1.0
    return [(says, len(s), sum(s), sum(s) / longest) for says, s in stage.other_phases.items()]


def _engines(stage: Stage) -> list[tuple[str, str, float, float, float, float]]:
    """Of several engines: (name, last node, tokens per second, milliseconds of a decode step, most tokens before it at
    once, share of the time of the one that worked longest)."""
    if len(stage.engines) < 2:
        return []
    seconds = {name: sum(row["seconds"] for row in rows) for name, rows in stage.engines.items()}
    longest = max(seconds.values()) or 1.0
    return [
        (
            name,
            rows[-1]["node"],
            sum(row["tokens"] for row in rows) / (seconds[name] or 1.0),
            1000 * median(row["seconds_per_step"] for row in rows),
            max(row["most_outstanding_tokens"] for row in rows),
            seconds[name] / longest,
        )
        for name, rows in stage.engines.items()
    ]


def _rest(stage: Stage) -> dict[int, float]:
    whole = stage.metrics.get("step_seconds", {})
    return {s: max(0.0, whole.get(s, 0.0) - sum(phases.values())) for s, phases in stage.step_phases.items()}


def _form(name: str) -> Callable[[float], str]:
    return label(name).text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
