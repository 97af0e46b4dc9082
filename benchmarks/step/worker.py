"""A contestant's own process: takes one step whenever the benchmark asks for one.

    python -m step.worker NAME CASE FOLDER      (CASE as JSON; run by `contestant.Contestant`)

All contestants are started first and then step in turn, so that whatever else the machine does hits all alike. One
that waits for its turn sleeps in a read.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from step.work import Case


class Turns:
    """The worker's side of the conversation: one JSON line out, one empty line in."""

    def __init__(self, orders: TextIO, answers: TextIO) -> None:
        self._orders, self._answers = orders, answers

    def ready(self, **settings: Any) -> None:
        """Started; waits for the first order. `settings` are shown beside the result."""
        self._exchange({"settings": settings})

    def done(self, parts: dict[str, float], lengths: list[int]) -> None:
        """One step is done, in `parts` seconds each; waits for the next order."""
        self._exchange({"parts": parts, "lengths": lengths})

    def fail(self, error: BaseException) -> None:
        self._say({"error": f"{type(error).__name__}: {str(error).strip() or '(no message)'}"})

    def _exchange(self, answer: dict[str, Any]) -> None:
        self._say(answer)
        if not self._orders.readline():
            os._exit(0)  # the benchmark is done with this one; no clean-up could matter

    def _say(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


Contestant = Callable[[Case, Path, Turns], None]


def contestants() -> dict[str, Contestant]:
    from step import floor_grpo, floor_ppo, floor_vllm, trl_step

    return {
        "floor vllm": floor_vllm.run,
        "floor vllm, unseeded": floor_vllm.run_unseeded,
        "floor transformers": floor_grpo.run,
        "floor ppo": floor_ppo.run,
        "trl": trl_step.run,
        "trl, static cache": trl_step.run_static,
        "trl, continuous batching": trl_step.run_continuous,
        "trl, vllm": trl_step.run_vllm,
        "trl, vllm, patched": trl_step.run_vllm_patched,
    }


def main() -> None:
    name, case, folder = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to the log
    turns = Turns(sys.stdin, answers)
    try:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        contestants()[name](Case(**json.loads(case)), Path(folder), turns)
    except Exception as error:
        turns.fail(error)
        raise


if __name__ == "__main__":
    main()
