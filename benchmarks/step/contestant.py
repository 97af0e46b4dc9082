"""The benchmark's side of a contestant: start its process, ask it for steps, see it out."""

import contextlib
import json
import select
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from step import machine
from step.command import environment
from step.work import Case

START_SECONDS = 300.0
STEP_SECONDS = 300.0


class ContestantFailed(RuntimeError):
    """A contestant that does not run here, in its own words."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One step: seconds of each part, and what share of the cores other processes used meanwhile."""

    parts: dict[str, float]
    others: float

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


class Contestant:
    """One contestant in its own process."""

    def __init__(self, name: str, case: Case, folder: Path, logs: Path) -> None:
        self.name, self._case = name, case
        self._log_path = logs / f"{case.name}-{name.replace(' ', '-').replace(',', '')}.log"
        self.settings: dict[str, Any] = {}
        with self._log_path.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "step.worker", name, json.dumps(asdict(case)), str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(),
                text=True,
                bufsize=1,
            )

    def wait_until_ready(self) -> None:
        """Raises `ContestantFailed`."""
        self.settings = self._answer(START_SECONDS)["settings"]

    def step(self) -> Sample:
        """Take one step now. Raises `ContestantFailed`."""
        begin = machine.reading()
        with contextlib.suppress(BrokenPipeError):  # it has died, which `_answer` will notice
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        answer = self._answer(STEP_SECONDS)
        end = machine.reading()
        wrong = set(answer["lengths"]) != {self._case.new_tokens} or len(answer["lengths"]) != self._case.samples
        if wrong:
            raise ContestantFailed(f"generated other lengths than {self._case}: {sorted(set(answer['lengths']))}")
        return Sample(answer["parts"], machine.others(begin, end))

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def _answer(self, seconds: float) -> dict[str, Any]:
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            what = "ended without a word" if ready else f"gave no sign within {seconds:.0f} s"
            raise ContestantFailed(f"{what}; its output is in {self._log_path}")
        answer = json.loads(line)
        if "error" in answer:
            raise ContestantFailed(answer["error"])
        return answer
