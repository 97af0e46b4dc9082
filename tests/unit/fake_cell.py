"""Stands in for `rlpipe run` in tests of studies: leaves what a run would, and ends as its seed says.

seed 0 to 9     accuracy 0.5 + seed/10 after 4 steps of 8 samples
13              prints three lines and ends with exit code 3
14              starts a child and sleeps; stopped with Ctrl-C, it ends with 130 as a run does
15              as 14, but Ctrl-C does not stop it
"""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def main(seed: int, prepared: Path, run_dir: Path) -> int:
    with open("ran.txt", "a") as file:
        file.write(f"{run_dir.name}\n")
    if seed == 13:
        print("one\ntwo\nthree")
        return 3
    if seed >= 14:
        return sleep(stubborn=seed == 15)
    shutil.copytree(prepared, run_dir, dirs_exist_ok=True)
    time.sleep(0.3)  # long enough to be looked at
    return 0


def command(plan, cell, folder: Path) -> list[str]:
    """In the place of `rlpipe.pipelines.study.run.command`. Writes here what the run will have written, so that the
    cell needs to import nothing."""
    from rlpipe.recipe.load import load

    recipe, prepared = load(str(plan.recipe), list(cell.changes)), Path("prepared", cell.name)
    finished_run(recipe, prepared)
    return [sys.executable, "-I", __file__, str(recipe.seed), str(prepared), str(folder / "cells" / cell.name)]


def study(arguments: list[str]) -> None:
    """`rlpipe study` with cells of this kind."""
    from rlpipe.cli import app
    from rlpipe.pipelines.study import run

    run.command = command
    app(["study", *arguments])


def finished_run(recipe, folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rlpipe.data.storage import Storage
    from rlpipe.observe.events import EventLog
    from rlpipe.recipe.resolved import to_yaml

    shutil.rmtree(folder, ignore_errors=True)
    storage = Storage(folder)
    storage.write("recipe.yaml", to_yaml(recipe).encode())
    log = EventLog(storage)
    log.emit("run_started", task="rl", steps=4, recipe={})
    log.evaluation(0, {"accuracy": 0.5, "failures": 0.0}, [])
    (storage.local / "rollouts").mkdir()
    for step in range(1, 5):
        pq.write_table(pa.table({"step": [step] * 8}), storage.local / f"rollouts/step-{step:06d}.parquet")
        log.metrics(step, {"reward": 0.1 * step, "step_seconds": float(step)})
        log.evaluation(step, {"accuracy": 0.5 + 0.1 * recipe.seed * step / 4, "failures": 0.0}, [])
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
    if sys.argv[1] == "study":
        study(sys.argv[2:])
    sys.exit(main(int(sys.argv[1]), *map(Path, sys.argv[2:])))
