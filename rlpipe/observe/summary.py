"""The table at the end of a run: the same held-out prompts before, between and after its stages."""

import os
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlpipe.data.storage import Storage
from rlpipe.observe import comparison
from rlpipe.observe.events import Event
from rlpipe.observe.metrics import label
from rlpipe.observe.report.collect import milestones, problem_of, same_questions, stages

LONGEST_TEXT = 60


def show(console: Console, run_dir: str | os.PathLike) -> None:
    """Print the measures of each milestone, and the greedy answers to a few prompts; then each comparison of models.
    Nothing, if nothing was evaluated."""
    run = Storage(run_dir)
    all_stages = stages(run)
    found = milestones(all_stages)
    if found:
        console.print(measures(found))
    answered = [(milestone, event) for milestone, event in found if event["samples"]]
    if answered:
        console.print(answers(answered))
    for stage in all_stages:
        if stage.comparison:
            console.print(comparison.table(stage.comparison))
            where = f"{run_dir}/stages/{stage.name}" if stage.name else run_dir
            console.print(f"answers side by side: {where}/{comparison.PAGE}", markup=False, soft_wrap=True)


def measures(found: Sequence[tuple[str, Event]]) -> Table:
    """One row per held-out metric, one column per milestone: runs have many metrics, and few stages."""
    title = "Held-out records" if same_questions(found) else "Held-out records, other ones or other rewards per stage"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for milestone, _ in found:
        table.add_column(milestone, justify="right")
    for name in _metrics(found):
        values = [event["metrics"].get(name) for _, event in found]
        table.add_row(label(name).short, *(label(name).number(v) if v is not None else "" for v in values))
    return table


def _metrics(found: Sequence[tuple[str, Event]]) -> list[str]:
    """What was measured, accuracies first; failures only where something failed."""
    names = list(dict.fromkeys(name for _, event in found for name in event["metrics"]))
    names = [name for name in names if name != "failures" or any(event["metrics"].get(name) for _, event in found)]
    return sorted(names, key=lambda name: ("accuracy" not in name, not name.startswith("pass@")))


def answers(found: Sequence[tuple[str, Event]]) -> Table:
    """One row per prompt, one column per milestone; a rewarded answer is green."""
    by_milestone = [{problem_of(sample): sample for sample in event["samples"]} for _, event in found]
    references = {problem: sample["columns"].get("answer") for problem, sample in by_milestone[-1].items()}
    known = any(answer is not None for answer in references.values())
    table = Table(title="Greedy answers", title_justify="left", title_style="bold")
    for heading in ("prompt", *(["reference"] if known else []), *(name for name, _ in found)):
        table.add_column(heading, overflow="fold")
    prompts = unframed([prompt for prompt, _ in references])
    for prompt, (problem, answer) in zip(prompts, references.items(), strict=True):
        cells = [_answer(samples[problem]) if problem in samples else Text("") for samples in by_milestone]
        table.add_row(Text(_short(prompt)), *([Text(_short(str(answer)))] if known else []), *cells)
    return table


def unframed(prompts: list[str]) -> list[str]:
    """Prompts without the words and marks that all of them begin and end with: a chat template, which would take the
    room of what tells them apart. Cut is at spaces and brackets alone."""
    before = re.sub(r"[^\s>\])}]+\Z", "", _shared(prompts))
    rest = [prompt.removeprefix(before)[::-1] for prompt in prompts]
    after = re.sub(r"[^\s<\[({]+\Z", "", _shared(rest))
    inner = [text.removeprefix(after)[::-1] for text in rest]
    return inner if all(inner) and len(set(inner)) > 1 else prompts


def _shared(texts: Sequence[str]) -> str:
    """What all of them begin with."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in same)


def _answer(sample: dict[str, Any]) -> Text:
    style = "red" if "failure" in sample else "green" if sample.get("reward", 0) > 0 else ""
    return Text(_short(sample["completion"]), style)


def _short(text: str) -> str:
    """On one line, without what a terminal would obey; of long texts the beginning and the end."""
    line = " ".join("".join(c if c.isprintable() or c.isspace() else "·" for c in text).split())
    return line if len(line) <= LONGEST_TEXT else f"{line[: LONGEST_TEXT // 2]} … {line[-LONGEST_TEXT // 2 :]}"
