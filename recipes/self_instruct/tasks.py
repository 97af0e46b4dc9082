"""Tasks of the Self-Instruct project as Alpaca rows: instruction, input, output.

    python recipes/self_instruct/tasks.py seed_tasks.jsonl tasks.jsonl

The first file is data/seed_tasks.jsonl of github.com/yizhongw/self-instruct (175 tasks, each with an instance), or
human_eval/user_oriented_instructions.jsonl (252 others). The second gets a row for each instance of a task.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def rows(task: dict[str, Any]) -> Iterator[dict[str, str]]:
    """A row per instance; those without an answer teach nothing."""
    for instance in task["instances"]:
        if instance["output"].strip():
            yield {"instruction": task["instruction"], "input": instance["input"], "output": instance["output"]}


def main(source: str, target: str) -> None:
    tasks = map(json.loads, Path(source).read_text(encoding="utf-8").splitlines())
    lines = [json.dumps(row) + "\n" for task in tasks for row in rows(task)]
    Path(target).write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} tasks in {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
