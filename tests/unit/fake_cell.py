"""Stands in for `rlpipe run` in tests of studies: reads the recipe, writes what a run would, and ends as its seed says.

seed 0 to 9     accuracy 0.5 + seed/10 after 4 steps of 8 samples
13              prints three lines and ends with exit code 3
14              starts a child and sleeps; stopped with Ctrl-C, it ends with 130 as a run does
15              as 14, but Ctrl-C does not stop it
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rlpipe.data.storage import Storage
from rlpipe.observe.events import EventLog
from rlpipe.recipe.load import load
from rlpipe.recipe.resolved import to_yaml
from rlpipe.recipe.study_plan import Plan, PlannedCell


def main(arguments: list[str]) -> int:
    place = arguments.index("--run-dir")
    recipe, run_dir = load(arguments[0], arguments[1:place]), Path(arguments[place + 1])
    with open("ran.txt", "a") as file:
        file.write(f"{run_dir.name}\n")
    Storage(run_dir).write("recipe.yaml", to_yaml(recipe).encode())
    if recipe.seed == 13:
        print("one\ntwo\nthree")
        return 3
    if recipe.seed >= 14:
        return sleep(stubborn=recipe.seed == 15)
    succeed(Storage(run_dir), recipe.seed)
    return 0


def command(plan: Plan, cell: PlannedCell, folder: Path) -> list[str]:
    """In the place of `rlpipe.pipelines.study.run.command`."""
    return [sys.executable, __file__, str(plan.recipe), *cell.changes, "--run-dir", str(folder / "cells" / cell.name)]


def study(arguments: list[str]) -> None:
    """`rlpipe study` with cells of this kind."""
    from rlpipe.cli import app
    from rlpipe.pipelines.study import run

    run.command = command
    app(["study", *arguments])


def succeed(storage: Storage, seed: int) -> None:
    log = EventLog(storage)
    log.emit("run_started", task="rl", steps=4, recipe={})
    log.evaluation(0, {"accuracy": 0.5, "failures": 0.0}, [])
    (storage.local / "rollouts").mkdir()
    for step in range(1, 5):
        pq.write_table(pa.table({"step": [step] * 8}), storage.local / f"rollouts/step-{step:06d}.parquet")
        log.metrics(step, {"reward": 0.1 * step, "step_seconds": float(step)})
        log.evaluation(step, {"accuracy": 0.5 + 0.1 * seed * step / 4, "failures": 0.0}, [])
    log.run_finished("completed")
    log.close()


def sleep(stubborn: bool) -> int:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open("children.txt", "a") as file:
        file.write(f"{child.pid}\n")
    if stubborn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    Path("sleeps.txt").touch()
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(study(sys.argv[2:]) if sys.argv[1] == "study" else main(sys.argv[1:]))
