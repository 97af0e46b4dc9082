"""Models side by side, in the terminal and on the page."""

import json
import re

from rich.console import Console

from rlpipe.data.storage import Storage
from rlpipe.observe import comparison


def metric(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "prompts": 2}


def beside(difference, p):
    return {"difference": difference, "low": 0, "high": 0, "p": p, "p_worse": p, "test": "McNemar, exact", "prompts": 2}


DATA = {
    "baseline": "old",
    "reference": None,
    "level": 0.05,
    "prompts": 2,
    "samples": 1,
    "models": {
        "old": {"failures": 0.0, "metrics": {"accuracy": metric(0.5, 0.1, 0.9)}, "against": {}},
        "new": {
            "failures": 1.0,
            "metrics": {"accuracy": metric(0.25, 0.0, float("nan")), "win_rate": metric(0.1, 0.0, 0.2)},
            "against": {"accuracy": beside(-0.25, 0.01), "win_rate": beside(-0.4, 0.2)},
        },
    },
    "regressions": [{"model": "new", "metric": "accuracy", "loss": 0.25, "tolerated": 0.0, "p": 0.01}],
}


def row(model, prompt_id, answer, correct, kind="greedy", prompt="<b>2+2</b>"):
    said = {"answer": answer, "correct": correct, "reward": float(correct), "failure_message": None, "refused": False}
    about = {"model": model, "kind": kind, "prompt_id": prompt_id, "prompt": prompt, "columns": {"answer": "4"}}
    return about | said | {"length": 1, "judge_win": None}


ROWS = [
    row("old", "p0", "4", True), row("old", "p1", "</script><script>alert(1)</script>", True),
    row("new", "p0", "4", True), row("new", "p1", "5", False), row("new", "p1", "6", False, "sampled"),
]  # fmt: skip


def test_the_table_marks_what_is_more_than_chance_and_what_is_worse():
    console = Console(width=100, record=True)
    console.print(comparison.table(DATA))
    text = console.export_text()
    assert "25.0% (-25.0%) * worse" in text and "[10.0%, 90.0%]" in text
    assert "10.0%" in text and text.count("*") == 2, "one star, and the one of the title"
    assert re.search(r"failed rewards +│ +0 │ +1 ", text)


def test_what_could_not_be_compared_has_no_star_and_no_p():
    data = json.loads(comparison.as_json(DATA))
    data["models"]["new"]["against"]["accuracy"] |= {"difference": None, "p": None}
    assert comparison.cell(data, "new", "accuracy").plain.startswith("25.0% (–) worse")
    [shown] = [cells[1] for title, cells in comparison.measures(data)["metrics"] if title == "held-out accuracy"]
    assert shown["tip"].startswith("p = nan") and not shown["sure"]


def test_what_is_not_finite_is_null_and_is_read_back(tmp_path):
    comparison.write(Storage(tmp_path), DATA, ROWS)
    found = comparison.read(Storage(tmp_path))
    assert found["models"]["new"]["metrics"]["accuracy"]["high"] is None
    assert comparison.read(Storage(tmp_path / "nothing")) is None


def test_the_page_holds_every_answer_as_text_and_needs_no_network():
    page = comparison.page(DATA, ROWS, "<i>run</i>")
    assert "<i>run</i>" not in page and "alert(1)</script>" not in page
    assert not re.search(r"""(?:src|href)=["']?http|@import|url\(""", page)
    [problems] = re.findall(r'<script type="application/json" id="problems">(.*?)</script>', page, re.DOTALL)
    first, second = json.loads(problems)
    assert first["prompt"] == "<b>2+2</b>" and first["reference"] == "4"
    assert second["by"]["old"]["answer"] == "</script><script>alert(1)</script>"
    assert [sample["answer"] for sample in second["by"]["new"]["samples"]] == ["6"]
    assert "new is worse than old in accuracy: by 0.25" in page
