"""Several models side by side: `comparison.json` for tools, a table for the terminal, `comparison.html` for people."""

import json
import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from rlpipe.data.storage import Storage
from rlpipe.observe.metrics import label
from rlpipe.observe.templates import template, texts

FILE, PAGE = "comparison.json", "comparison.html"


def write(storage: Storage, data: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """`data` are the numbers, `rows` the answers, one each. The JSON last: where it is, everything is."""
    title = str(storage).rstrip("/").rpartition("/")[2]
    storage.write(PAGE, page(data, rows, title).encode(errors="replace"))
    storage.write(FILE, as_json(data, indent=1).encode())


def read(storage: Storage) -> dict[str, Any] | None:
    """The numbers; None where nothing was compared."""
    return json.loads(storage.read(FILE)) if storage.exists(FILE) else None


def as_json(value: Any, indent: int | None = None) -> str:
    """What is not finite is null, which JSON knows."""
    return json.dumps(_finite(value), ensure_ascii=False, indent=indent, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def metrics_of(data: dict[str, Any]) -> list[str]:
    """All that was measured, what is judged first; failures only where something failed."""
    names = dict.fromkeys(name for model in data["models"].values() for name in model["metrics"])
    if not any(model["failures"] for model in data["models"].values()):
        names.pop("failure_rate", None)
    return sorted(names, key=lambda name: (name != "accuracy", not name.startswith("pass@"), name != "win_rate"))


def table(data: dict[str, Any]) -> Table:
    """One row per metric, one column per model: the value, how far it is from the baseline's, a star where that is more
    than chance, and beneath it the interval; red what is a regression."""
    base = data["baseline"]
    drawn = Table(title=_title(data), title_justify="left", title_style="bold")
    drawn.add_column("")
    for name in data["models"]:
        drawn.add_column(f"{name}\n(baseline)" if name == base else name, justify="right")
    for metric in metrics_of(data):
        drawn.add_row(label(metric).short, *(cell(data, name, metric) for name in data["models"]))
    if any(model["failures"] for model in data["models"].values()):
        drawn.add_row("failed rewards", *(f"{model['failures']:.0f}" for model in data["models"].values()))
    if any(model.get("failed_judgements") for model in data["models"].values()):
        drawn.add_row("failed judgements", *(f"{model['failed_judgements']}" for model in data["models"].values()))
    return drawn


def _title(data: dict[str, Any]) -> str:
    mark = f"; * p < {data['level']:g}, paired" if data["baseline"] else ""
    return f"{data['prompts']} prompts, the same for each model; 95 % intervals{mark}"


def cell(data: dict[str, Any], name: str, metric: str) -> Text:
    """One of the table."""
    found = data["models"][name]["metrics"].get(metric)
    if found is None:
        return Text("")
    beside = data["models"][name]["against"].get(metric)
    text = Text(number(metric, found["value"]))
    if beside and metric != "win_rate":
        text.append(f" ({_signed(metric, beside['difference'])})", "dim")
    if _is_sure(data, beside):
        text.append(" *", "bold")
    if is_regression(data, name, metric):
        text.stylize("red")
        text.append(" worse", "bold red")
    if found["low"] is not None:
        text.append(f"\n[{number(metric, found['low'])}, {number(metric, found['high'])}]", "dim")
    return text


def _is_sure(data: dict[str, Any], beside: dict[str, Any] | None) -> bool:
    """Of numbers that are not finite there is no p."""
    return bool(beside and beside["p"] is not None and beside["p"] < data["level"])


def _tip(beside: dict[str, Any]) -> str:
    p = math.nan if beside["p"] is None else beside["p"]
    return f"p = {p:.3g} ({beside['test']}, {beside['prompts']} prompts)"


def is_regression(data: dict[str, Any], name: str, metric: str) -> bool:
    return any((each["model"], each["metric"]) == (name, metric) for each in data["regressions"])


def number(metric: str, value: float | None) -> str:
    return label(metric).number(math.nan if value is None else value)


def _signed(metric: str, value: float | None) -> str:
    return number(metric, value) if value is None or value < 0 else f"+{number(metric, value)}"


def page(data: dict[str, Any], rows: Sequence[dict[str, Any]], title: str) -> str:
    """One file that needs nothing else. Texts go in as JSON, and from there as text, never as HTML."""
    return template(PAGE).render(
        title=title,
        style=Markup(texts()["style.css"] + texts()["comparison.css"]),
        script=Markup(texts()["comparison.js"]),
        data=data,
        compared=measures(data),
        problems=Markup(_in_script(_problems(rows))),
        models=Markup(_in_script(list(data["models"]))),
    )


def measures(data: dict[str, Any]) -> dict[str, Any]:
    """What `measures.html` shows."""
    rows = [(label(m).title, [_shown(data, name, m) for name in data["models"]]) for m in metrics_of(data)]
    return {"data": data, "head": _title(data), "metrics": rows}


def _shown(data: dict[str, Any], name: str, metric: str) -> dict[str, Any]:
    found = data["models"][name]["metrics"].get(metric)
    beside = data["models"][name]["against"].get(metric)
    if found is None:
        return {"value": ""}
    interval = "" if found["low"] is None else f"{number(metric, found['low'])} to {number(metric, found['high'])}"
    return {
        "value": number(metric, found["value"]),
        "interval": interval,
        "difference": _signed(metric, beside["difference"]) if beside and metric != "win_rate" else "",
        "tip": _tip(beside) if beside else "",
        "sure": _is_sure(data, beside),
        "worse": is_regression(data, name, metric),
    }


_SHOWN = ("answer", "correct", "reward", "failure_message", "refused", "length", "judge_win")


def _problems(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each prompt with every model's greedy answer, and how many of its samples were right."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        reference = row["columns"].get("answer")
        problem = found.setdefault(
            row["prompt_id"], {"id": row["prompt_id"], "prompt": row["prompt"], "reference": reference, "by": {}}
        )
        said = problem["by"].setdefault(row["model"], {"samples": []})
        kept = {key: row[key] for key in _SHOWN}
        if row["kind"] == "greedy":
            said |= kept
        else:
            said["samples"].append({key: kept[key] for key in ("answer", "correct", "reward", "failure_message")})
    return list(found.values())


def _in_script(value: Any) -> str:
    """JSON that ends no script element."""
    return as_json(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
