"""What the driver of a run costs, as engines and trajectories become many.

    python benchmarks/controller.py            # everything; some half an hour on a quiet core
    python benchmarks/controller.py --quick    # shrunk: does all of it work? Its figures mean nothing

The driver's own code (pool, sampler, rewards, ledger, trainer, publisher) over engines that compute nothing, in one
process; and what Ray takes for calls of real actors. Cells are added to --out as they are done, so that they can be
asked for in parts; the tables and the plot are of all that stands there.
"""

import argparse
import cProfile
import gc
import json
import pstats
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fleet import ray_calls
from fleet.controller import Controller, on_this_clock

from rlpipe.observe.study.chart import Reach, draw

RESULTS = Path(__file__).parent / "results"
PUBLISHES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shrunk; the figures mean nothing")
    parser.add_argument("--engines", type=int, nargs="*", default=[1, 8, 64, 512])
    parser.add_argument("--trajectories", type=int, nargs="*", default=[1000, 10_000, 100_000], help="of a step")
    parser.add_argument(
        "--actors", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32], help="real ones, for Ray's calls"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "controller.json")
    parser.add_argument("--profile", action="store_true", help="print where the time of each cell goes")
    asked = parser.parse_args()
    if asked.quick:
        asked.engines, asked.trajectories, asked.actors = [1, 4], [64, 256], [1, 2]
    found = json.loads(asked.out.read_text()) if asked.out.exists() else {"cells": {}, "calls": {}, "slices": {}}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for trajectories in sorted(asked.trajectories):
        for engines in asked.engines:
            found["cells"][f"{engines}/{trajectories}"] = cell(engines, trajectories, asked.profile)
            asked.out.write_text(json.dumps(found, indent=1))
            gc.collect()
    if asked.actors:
        calls, slices = ray_calls.measured(asked.actors, *((3, 1.0) if asked.quick else (200, 10.0)))
        found["calls"] |= {str(each.actors): each._asdict() for each in calls}
        found["slices"] |= {str(each.actors): each._asdict() for each in slices}
        asked.out.write_text(json.dumps(found, indent=1))
    show(found)
    if cells := list(found["cells"].values()):
        asked.out.with_suffix(".svg").write_text(drawing(cells))


def cell(engines: int, trajectories: int, profile: bool = False) -> dict[str, Any]:
    """The second step of a run, the first one where a step takes long; and some publishes."""
    with tempfile.TemporaryDirectory(prefix="controller-", dir=".") as folder:  # on the disk that it is started on
        controller = Controller(Path(folder), engines, trajectories)
        with on_this_clock(controller.clock):
            publishes = [controller.timed_publish(0) for _ in range(PUBLISHES)]
            first = trajectories > 20_000
            for step in (1,) if first else (1, 2):
                profiler = cProfile.Profile()
                if profile and (first or step == 2):
                    profiler.enable()
                cost = controller.step(step)
                profiler.disable()
        controller.close()
    if profile:
        print(f"\n{engines} engines, {trajectories:,} trajectories:")
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    done = {
        "engines": engines,
        "trajectories": trajectories,
        "seconds": cost.seconds,
        "waited": cost.waited,
        "calls": cost.calls,
        "publish": statistics.median(publishes),
        "memory_gib": cost.memory_gib,
    }
    print(f"{engines} engines, {trajectories:,} trajectories: {sum(cost.seconds.values()):.2f} s", flush=True)
    return done


def show(found: dict[str, dict[str, Any]]) -> None:
    cells = sorted(found["cells"].values(), key=lambda cell: (cell["trajectories"], cell["engines"]))
    phases = list(dict.fromkeys(name for cell in cells for name in cell["seconds"]))
    print("\nCPU microseconds of the driver for a trajectory, by phase; CPU milliseconds for a publish:\n")
    head = ["trajectories a step", "engines", *phases, "together", "a publish, ms", "busy", "memory, GiB"]
    table(head, [[*_sizes(each), *_costs(each, phases)] for each in cells])
    if found["calls"]:
        print("\nRay's calls of real actors, CPU microseconds of the driver:\n")
        head = ["actors", "a call", "a call, wall", "a slice of 8 responses", "slices at a look", "driver's core busy"]
        table(head, [_ray_row(found, actors) for actors in found["calls"]])


def _sizes(cell: dict[str, Any]) -> list[str]:
    return [f"{cell['trajectories']:,}", str(cell["engines"])]


def _costs(cell: dict[str, Any], phases: Sequence[str]) -> list[str]:
    """`busy`: of the step's time, had nobody but the driver and these engines anything to do."""
    total = sum(cell["seconds"].values())
    per = [f"{1e6 * cell['seconds'].get(name, 0.0) / cell['trajectories']:.1f}" for name in phases]
    busy = total / (total + cell["waited"])
    return [
        *per,
        f"{_per_trajectory(cell):.1f}",
        f"{1e3 * cell['publish']:.2f}",
        f"{busy:.1%}",
        f"{cell['memory_gib']:.2f}",
    ]


def _per_trajectory(cell: dict[str, Any]) -> float:
    """Microseconds, publishing left out."""
    return 1e6 * (sum(cell["seconds"].values()) - cell["seconds"]["publish"]) / cell["trajectories"]


def _ray_row(found: dict[str, dict[str, Any]], actors: str) -> list[str]:
    call, piece = found["calls"][actors], found["slices"][actors]
    return [
        actors, f"{1e6 * call['cpu']:.0f}", f"{1e6 * call['wall']:.0f}", f"{1e6 * piece['cpu']:.0f}",
        f"{piece['looks']:.1f}", f"{piece['busy']:.1%}",
    ]  # fmt: skip


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"| {' | '.join(head)} |\n|{'---:|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def drawing(cells: Sequence[dict[str, Any]]) -> str:
    """Cost of a trajectory against the number of engines, a line for each size of a step."""
    lines: dict[str, list[Reach]] = {}
    for each in sorted(cells, key=lambda cell: (cell["trajectories"], cell["engines"])):
        cost = _per_trajectory(each)
        lines.setdefault(f"{each['trajectories']:,} a step", []).append(Reach(each["engines"], cost, cost, cost))
    title = "CPU time of the driver for a trajectory, microseconds"
    return draw(lines, title, lambda value: f"{value:.0f}", "engines")


if __name__ == "__main__":
    main()
