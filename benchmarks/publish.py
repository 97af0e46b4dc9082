"""How many bytes and seconds does it take until an engine serves the trainer's weights: all of them, an adapter alone,
or an adapter merged into all of them.

    python benchmarks/publish.py --help

What is measured and how to read it: benchmarks/README.md.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

from typer import Option

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from step import machine, options  # noqa: E402
from step.tables import Grid  # noqa: E402

from rlpipe.recipe.adapter import LoraAdapter  # noqa: E402
from rlpipe.recipe.model import PretrainedModel, ScratchModel  # noqa: E402

if TYPE_CHECKING:
    from rlpipe.rollout.engine import Engine
    from rlpipe.training.policy import Policy

WIDE = {"hidden_size": 768, "layers": 12, "heads": 12, "kv_heads": 12, "intermediate_size": 3072}
SIZES = {"small": ScratchModel(scratch="qwen2"), "large": ScratchModel(scratch="qwen2", initializer_range=0.02, **WIDE)}
RANK = 16
WAYS = ("full", "served", "merged")
"""Full fine-tuning; LoRA of which the adapter travels; LoRA of which all weights travel, merged."""

app = options.application()


@dataclass(frozen=True, slots=True)
class Cell:
    """One engine that gets one model's weights in one way."""

    size: str
    engine: str
    way: str


@dataclass(frozen=True, slots=True)
class Found:
    """Medians over the publishes after the first."""

    cell: Cell
    parameters: int
    payload_bytes: int
    export_seconds: float
    """The trainer's part: gathering, merging, packing."""
    load_seconds: float
    """The engine's part, from the payload to serving it."""

    @property
    def seconds(self) -> float:
        return self.export_seconds + self.load_seconds


def policy_of(cell: Cell, folder: Path) -> "Policy":
    from rlpipe.recipe.algorithm import PRESETS
    from rlpipe.training.distributed import Rank
    from rlpipe.training.policy import Policy, PolicySpec

    settings = PRESETS["grpo"](name="grpo").model_dump(exclude={"name", "group_size", "dynamic_sampling"})
    adapter = None if cell.way == "full" else LoraAdapter(kind="lora", r=RANK)
    spec = PolicySpec(
        PretrainedModel(path=str(folder)), str(folder), settings, 8, 1.0, 1, adapter, cell.way == "merged",
        dtype="float32",
    )  # fmt: skip
    return Policy(spec, Rank())


def engine_of(cell: Cell, folder: Path) -> "Engine":
    from rlpipe.rollout.engine import EngineSpec

    lora_rank = RANK if cell.way == "served" else None
    spec = EngineSpec(
        cell.engine, str(folder), "float32", (1,), 0, max_num_seqs=16, kv_cache_gib=0.1, lora_rank=lora_rank
    )
    if cell.engine == "vllm":
        from rlpipe.rollout.vllm_engine import VllmEngine

        return VllmEngine(spec)
    from rlpipe.rollout.transformers_engine import TransformersEngine

    return TransformersEngine(spec)


def measure(cell: Cell, folder: Path, publishes: int) -> Found:
    """In a process of its own: trainer and engine side by side, so that no transport is in it."""
    import time

    import torch

    torch.set_num_threads(machine.THREADS)
    engine, policy = engine_of(cell, folder), policy_of(cell, folder)
    exports, loads, size = [], [], 0
    for version in range(1, publishes + 2):
        started = time.perf_counter()
        payload = policy.export()
        exported = time.perf_counter()
        engine.publish(version, payload)
        loads.append(time.perf_counter() - exported)
        exports.append(exported - started)
        size = payload.nbytes
    return Found(cell, policy.sizes()[1], size, median(exports[1:]), median(loads[1:]))


def grid(size: str, found: list[Found]) -> Grid:
    """What one model costs each engine, and how many times less than all weights."""
    rows = []
    for one in found:
        full = next(f for f in found if f.cell.engine == one.cell.engine and f.cell.way == "full")
        rows.append((
            f"{one.cell.engine}, {one.cell.way}", f"{one.payload_bytes / 2**20:.1f}", f"{one.export_seconds:.3f}",
            f"{one.load_seconds:.3f}", f"{full.payload_bytes / one.payload_bytes:.1f}",
            f"{full.seconds / one.seconds:.1f}",
        ))  # fmt: skip
    header = ("medians", "MiB", "export, s", "load, s", "fewer bytes", "faster")
    note = "The last two columns: full / this one, bytes and seconds of export and load together."
    parameters = next(f.parameters for f in found if f.cell.way == "full")
    return Grid(f"{size}: {parameters / 1e6:.1f} M parameters, float32, LoRA of rank {RANK}", header, tuple(rows), note)


def write(found: list[Found], grids: list[Grid], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    data = {"machine": machine.describe(), "cells": [asdict(one) for one in found]}
    (out / "publish.json").write_text(json.dumps(data, indent=1) + "\n")
    text = "# One publish\n\n" + "\n".join(one.markdown() for one in grids)
    (out / "publish.md").write_text(text)


@app.command()
def main(
    size: Annotated[str, Option(help="small (2.8 M parameters), large (113 M), or both.")] = "both",
    engine: options.Engine = "both",
    publishes: Annotated[int, Option(help="Publishes of each kind that count, after a first one.")] = 5,
    quick: options.Quick = False,
    out: options.Out = options.RESULTS,
    keep: options.Keep = None,
) -> None:
    """Time a publish: full weights, a LoRA adapter alone, and the adapter merged into full weights, to both engines.

    \b
    python benchmarks/publish.py            everything
    python benchmarks/publish.py --quick    the small model, one publish: does all of it work?
    """
    engines = options.chosen(engine, options.ENGINES, "--engine")
    sizes = ("small",) if quick else options.chosen(size, tuple(SIZES), "--size")
    found, grids = [], []
    with (
        options.work_folder(keep) as folder,
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes,
    ):
        for name in sizes:
            processes.submit(build, name, folder / name).result()
            cells = [Cell(name, e, way) for e in engines for way in WAYS]
            part = [
                processes.submit(measure, cell, folder / name, 1 if quick else publishes).result() for cell in cells
            ]
            found += part
            grids.append(grid(name, part))
            options.console.print(grids[-1].rich(), "")
    write(found, grids, out)
    options.say(f"Written: {out}/publish.json and .md")


def build(size: str, folder: Path) -> None:
    from rlpipe.models.scratch import build as build_model

    build_model(SIZES[size], 0, folder)


if __name__ == "__main__":
    options.run(app)
