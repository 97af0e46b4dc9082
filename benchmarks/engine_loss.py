"""What it costs that an engine is lost: how soon it is noticed, and when another one serves in its place.

    python benchmarks/engine_loss.py [--engine vllm] [--engines 2] [--heartbeat 30]

Two runs of a small model on a Ray of this machine. In one an engine gets SIGKILL, in the other SIGSTOP, with work in
its hands. Seconds since the signal, by the run's own warnings; and whether what was trained on is what a run without
a fault was trained on: the same prompts in the same order with the same tokens.
"""

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rlpipe.data.storage import Storage
from rlpipe.observe import events
from rlpipe.pipelines.run import DONE, run
from rlpipe.recipe.load import load
from rlpipe.rollout.pool import EnginePool
from rlpipe.runtime.handle import Within

RECIPE = """
task: rl
name: engine-loss
model: {scratch: qwen2, hidden_size: 128, layers: 2, heads: 4, kv_heads: 2, intermediate_size: 256}
data: {kind: arithmetic, heldout: 16}
rewards: {mix: [{kind: exact}]}
algorithm: {name: grpo, group_size: 8}
schedule: {prompts_per_step: 16}
train: {threads: 1, resources: {cpus: 0.1}}
rollout: {max_new_tokens: 32, threads: 1, resources: {cpus: 0.1}, kv_cache_gib: 0.1}
evaluation: {prompts: 8, every: 1000, samples: 1, pass_at: []}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="vllm", choices=["vllm", "transformers"])
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--heartbeat", type=float, default=30.0, help="deadlines.heartbeat")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    changes = [f"rollout.{key}={getattr(given, key)}" for key in ("engine", "engines")]
    changes += [f"deadlines.heartbeat={given.heartbeat}", f"schedule.steps={given.steps}"]
    with tempfile.TemporaryDirectory() as folder:
        expected = trained_on(fault_free(Path(folder), changes))
        rows = ["| fault | noticed after | serving again after | lost |", "|---|---|---|---|"]
        for fault in (signal.SIGKILL, signal.SIGSTOP):
            directory = Path(folder) / fault.name
            with striking(fault) as struck:
                assert run(recipe(Path(folder), changes), directory, debug=False) == DONE
            lost = "nothing" if trained_on(directory) == expected else "SOMETHING"
            rows.append(row(fault, directory, struck[0], lost))
    print("\n".join(rows))


def recipe(folder: Path, changes: list[str]) -> Any:
    file = folder / "recipe.yaml"
    file.write_text(RECIPE)
    return load(str(file), changes)


def fault_free(folder: Path, changes: list[str]) -> Path:
    assert run(recipe(folder, changes), folder / "whole", debug=False) == DONE
    return folder / "whole"


@contextmanager
def striking(fault: signal.Signals) -> Iterator[list[float]]:
    """The first engine that works for weight version 2 gets the signal; the time of it is filed."""
    struck: list[float] = []
    look = EnginePool._look

    def look_and_strike(pool: EnginePool, *arguments: Any) -> Any:
        seat = pool._seats["policy"][0]
        if not struck and seat.groups and pool._published["policy"].version == 2:
            process = seat.handle.pulse(Within("heartbeat", 30)).result()
            struck.append(time.time())
            os.kill(process, fault)
        return look(pool, *arguments)

    EnginePool._look = look_and_strike
    try:
        yield struck
    finally:
        EnginePool._look = look


def trained_on(directory: Path) -> list[list[Any]]:
    columns = ("group_id", "sample_index", "response_tokens", "epoch")
    files = sorted((directory / "rollouts").glob("*.parquet"))
    return [[row[name] for name in columns] for file in files for row in pq.read_table(file).to_pylist()]


def row(fault: signal.Signals, directory: Path, struck: float, lost: str) -> str:
    warnings = [e for e in events.read(Storage(directory))[0] if e["kind"] == "warning"]
    noticed, again = (
        next((f"{e['time'] - struck:.1f} s" for e in warnings if words in e["message"]), "not before the run's end")
        for words in ("is lost", "serves again")
    )
    return f"| {fault.name} | {noticed} | {again} | {lost} |"


if __name__ == "__main__":
    main()
