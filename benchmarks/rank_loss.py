"""What it costs that a training rank is lost: how soon it is noticed, and when training has got further than it was.

    python benchmarks/rank_loss.py [--heartbeat 30] [--tasks sft rl] [--faults SIGKILL SIGSTOP]

Three runs of a small model for each task, on a Ray of this machine, with two ranks: one without a fault, one in which a
rank gets SIGKILL, one in which a rank gets SIGSTOP, in the middle of training. Seconds since the signal, by the run's
own events; and whether the run without a fault has the same losses and final weights, to the bit (SFT), or trained on
the same prompts and tokens (RL).
"""

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import engine_loss
import psutil

from rlpipe.data.storage import Storage
from rlpipe.observe import events
from rlpipe.pipelines.offline import stage
from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.pipelines.run import DONE, run
from rlpipe.recipe.load import load
from rlpipe.training.policy import Policy

SFT = """
task: sft
name: rank-loss
model: {scratch: qwen2, hidden_size: 128, layers: 2, heads: 4, kv_heads: 2, intermediate_size: 256}
data: {kind: arithmetic, heldout: 16}
train:
  {max_steps: 20, per_device_train_batch_size: 16, logging_steps: 1, save_steps: 5, ranks: 2, zero_stage: 2, threads: 1}
"""
RL = engine_loss.RECIPE.replace(
    "train: {threads: 1,", "train: {ranks: 2, zero_stage: 2, save_steps: 1, threads: 1,"
).replace("rollout: {", "rollout: {engine: transformers, ")
STRUCK_AT = 12
"""The step after which SFT is struck; RL is in the middle of its third."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heartbeat", type=float, default=30.0, help="deadlines.heartbeat")
    parser.add_argument("--tasks", nargs="+", default=["sft", "rl"], choices=["sft", "rl"])
    parser.add_argument("--faults", nargs="+", default=["SIGKILL", "SIGSTOP"], choices=["SIGKILL", "SIGSTOP"])
    given = parser.parse_args()
    faults = [signal.Signals[name] for name in given.faults]
    rows = ["| task | fault | noticed after | further after | lost |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for task in given.tasks:
            changes = [f"deadlines.heartbeat={given.heartbeat}"] + (["schedule.steps=4"] if task == "rl" else [])
            rows += measured(task, Path(folder) / task, changes, faults)
    print("\n".join(rows))


def measured(task: str, folder: Path, changes: list[str], faults: list[signal.Signals]) -> Iterator[str]:
    text, striking, outcome = {
        "sft": (SFT, striking_sft, losses_and_weights),
        "rl": (RL, striking_rl, engine_loss.trained_on),
    }[task]
    folder.mkdir()
    (folder / "recipe.yaml").write_text(text)
    recipe = load(str(folder / "recipe.yaml"), changes)
    assert run(recipe, folder / "whole", debug=False) == DONE
    for fault in faults:
        with striking(fault) as struck:
            assert run(recipe, folder / fault.name, debug=False) == DONE
        noticed, further = told(folder / fault.name, *struck)
        lost = "nothing" if outcome(folder / fault.name) == outcome(folder / "whole") else "SOMETHING"
        yield f"| {task} | {fault.name} | {noticed:.1f} s | {further:.1f} s | {lost} |"


@contextmanager
def striking_sft(fault: signal.Signals) -> Iterator[list[float]]:
    """A rank gets the signal after a step; the time of it is filed."""
    struck: list[float] = []
    tell = stage._Told.__call__

    def tell_and_strike(told: Any, step: int, values: dict[str, float]) -> None:
        tell(told, step, values)
        if step == STRUCK_AT and not struck:
            ranks = [p.pid for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in str(p.cmdline())]
            struck.append(time.time())
            os.kill(max(ranks), fault)

    stage._Told.__call__ = tell_and_strike
    try:
        yield struck
    finally:
        stage._Told.__call__ = tell


@contextmanager
def striking_rl(fault: signal.Signals) -> Iterator[list[float]]:
    """A rank gets the signal while the third update is under way; the time of it is filed."""
    struck: list[float] = []
    updates: list[Any] = []
    call = Trainer._call

    def call_and_strike(trainer: Trainer, role: str, method: Callable[..., Any], shards: Any) -> Any:
        process = trainer._roles["policy"][1].pulse(trainer._within).result()
        calls = call(trainer, role, method, shards)
        updates.extend([role] if method is Policy.update else [])
        if len(updates) == 3 and not struck:
            struck.append(time.time())
            os.kill(process, fault)
        return calls

    Trainer._call = call_and_strike
    try:
        yield struck
    finally:
        Trainer._call = call


def told(directory: Path, struck: float) -> tuple[float, float]:
    """Seconds until the loss was noticed, and until there was a step that had not been trained before."""
    found = events.read(Storage(directory))[0]
    again = ("starts again", "start again")
    noticed = next(e["time"] for e in found if e["kind"] == "warning" and any(word in e["message"] for word in again))
    further = next(e["time"] for e in found if e["kind"] == "metrics" and e["time"] > noticed and e["step"] > 2)
    return noticed - struck, further - struck


def losses_and_weights(directory: Path) -> tuple[list[tuple[int, float]], bytes]:
    found = [event for event in events.read(Storage(directory))[0] if event["kind"] == "metrics"]
    losses = [(event["step"], event["metrics"]["loss"]) for event in found if "loss" in event["metrics"]]
    return losses, (directory / "model" / "model.safetensors").read_bytes()


if __name__ == "__main__":
    main()
