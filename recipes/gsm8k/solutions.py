"""Solutions that OpenAI's models gave to GSM8K problems, each labelled right or wrong, as records for a reward model,
DPO or KTO.

    python recipes/gsm8k/solutions.py example_model_solutions.jsonl solutions.jsonl

The first file lies in grade_school_math/data of github.com/openai/grade-school-math: a question per line, with one
solution of each of four models. The second gets TRL's unpaired preference format: prompt, completion, label;
and the right answer, which rewards compare with.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def labelled(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A record per solution of a question; `model` says who wrote it, `answer` what is right."""
    right = row["ground_truth"].rpartition("A: ")[2]
    for model, answer in row.items():
        if isinstance(answer, dict):
            question, solution = f"{row['question']}\n", answer["solution"]
            record = {"prompt": question, "completion": solution, "label": answer["is_correct"]}
            yield record | {"answer": right, "model": model}


def main(source: str, target: str) -> None:
    rows = map(json.loads, Path(source).read_text(encoding="utf-8").splitlines())
    lines = [json.dumps(record) + "\n" for row in rows for record in labelled(row)]
    Path(target).write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} labelled solutions in {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
