"""How long a checkpoint of RL keeps training waiting: all of it done while training waits, against sealing beside it.

    python benchmarks/checkpoint.py            # a policy of 58 million parameters, 0.9 GB a checkpoint; two minutes
    python benchmarks/checkpoint.py --quick    # shrunk: does all of it work? Its figures mean nothing

Both ways in turn, in one process, on the disk that it is started on (--folder, which is removed). Prints a table of
medians.
"""

import argparse
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from rlpipe.data.storage import Storage
from rlpipe.models.load import materialise
from rlpipe.observe.events import EventLog
from rlpipe.pipelines import checkpoints
from rlpipe.pipelines.online.beside import Beside
from rlpipe.pipelines.online.saving import Saving
from rlpipe.recipe.algorithm import PRESETS
from rlpipe.recipe.model import ScratchModel
from rlpipe.recipe.roles import PolicyTraining
from rlpipe.runtime.local import LocalHandle
from rlpipe.training.distributed import Rank
from rlpipe.training.policy import Policy, PolicySpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shrunk; the figures mean nothing")
    parser.add_argument("--folder", type=Path, default=Path("checkpoint-benchmark"), help="where to write; removed")
    parser.add_argument("--times", type=int, default=5, help="checkpoints of each kind")
    asked = parser.parse_args()
    shutil.rmtree(asked.folder, ignore_errors=True)
    try:
        measure(asked.folder, asked.quick, 1 if asked.quick else asked.times)
    finally:
        shutil.rmtree(asked.folder, ignore_errors=True)


def measure(folder: Path, quick: bool, times: int) -> None:
    policy = LocalHandle("policy", built(folder, quick))
    ways = {"all while training waits": Beside(debug=True), "sealed beside training": Beside(debug=False)}
    blocked: dict[str, list[float]] = {name: [] for name in ways}
    whole: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(times + 1):
        for name, beside in ways.items():
            saving = made(folder / "run", policy, beside)
            seconds = timed(lambda saving=saving, number=number: saving.save(number + 1, None))
            until_sealed = seconds + timed(saving.finish)
            if number:  # the first warms up
                blocked[name].append(seconds)
                whole[name].append(until_sealed)
    written = sum(file.stat().st_size for file in checkpoints.newest(folder / "run").rglob("*") if file.is_file())
    print(f"\n{written / 1e6:,.0f} MB a checkpoint; median of {times}:\n")
    print(f"| {'':24} | training waits, s | until it stands, s |\n|---|---:|---:|")
    for name in ways:
        print(f"| {name:24} | {statistics.median(blocked[name]):17.2f} | {statistics.median(whole[name]):18.2f} |")
    first, second = (statistics.median(seconds) for seconds in blocked.values())
    print(f"\nTraining waits {second / first:.0%} of the time.")


def built(folder: Path, quick: bool) -> Policy:
    sizes = {} if quick else {"hidden_size": 768, "layers": 8, "heads": 12, "kv_heads": 12, "intermediate_size": 2048}
    model = ScratchModel(scratch="qwen2", **sizes)
    path = materialise(model, 0, folder / "base")
    algorithm = PRESETS["grpo"](name="grpo").model_dump(exclude={"name", "group_size", "dynamic_sampling"})
    policy = Policy(PolicySpec(model, path, algorithm, max_new_tokens=8, temperature=1.0, total_steps=1), Rank())
    engine = policy._engine
    for parameter in engine.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    engine._adamw.step()  # from now on it has its running means to be saved
    return policy


def made(run: Path, policy: LocalHandle, beside: Beside) -> Saving:
    """Of a stage whose driver has nothing to keep: its part is a small file."""
    nothing = SimpleNamespace(state=dict)
    events = EventLog(Storage(run))

    def export(folder: Path) -> None:
        policy._role.save(str(folder / "model"))

    settings = PolicyTraining(save_steps=1, save_total_limit=1)
    return Saving(run, settings, 0, {"policy": [policy]}, {}, nothing, export, {}, 600.0, events, beside)


def timed(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
