"""What it costs that a node is lost: how soon it is noticed, and when its roles serve again on another one.

    python benchmarks/node_loss.py [--engine transformers]

Runs of a small model on a Ray cluster of several nodes on this machine, with Ray's own settings of when a node counts
as lost, two engines on a node each and a training rank on a third; a fourth node has room. A node is removed, or its
raylet gets SIGKILL, with work in the engine's hands or in the middle of a training step. Seconds since then, by the
run's own warnings; and whether what was trained on is what a run without a fault was trained on.
"""

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
from engine_loss import fault_free, recipe, trained_on
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from rlpipe.data.storage import Storage
from rlpipe.observe import events
from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.pipelines.run import DONE, run
from rlpipe.rollout.pool import EnginePool

Strike = Callable[[Any], None]
"""Takes the handle of a role and does something to its node."""
STORE_BYTES = 100 * 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="transformers", choices=["vllm", "transformers"])
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    changes = [f"rollout.engine={given.engine}", "rollout.engines=2", f"schedule.steps={given.steps}"]
    changes += ["rollout.resources.cpus=1", "train.resources.cpus=1", "train.save_steps=1"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join(rows(cluster, Path(folder), changes)))
    ray.shutdown()
    cluster.shutdown()


def rows(cluster: Cluster, folder: Path, changes: list[str]) -> list[str]:
    have_four(cluster)
    expected = trained_on(fault_free(folder, changes))
    found = ["| fault | noticed after | serving again after | lost |", "|---|---|---|---|"]
    for name, striking, strike in (
        ("node of an engine removed", striking_engine, removed(cluster)),
        ("SIGKILL of an engine's raylet", striking_engine, raylet_killed(cluster)),
        ("node of a training rank removed", striking_rank, removed(cluster)),
    ):
        have_four(cluster)
        directory, struck = folder / name.replace(" ", "-"), []
        with striking(strike, struck):
            assert run(recipe(folder, changes), directory, debug=False) == DONE
        found.append(row(name, directory, struck[0], "nothing" if trained_on(directory) == expected else "SOMETHING"))
    return found


def have_four(cluster: Cluster) -> None:
    while len(cluster.worker_nodes) < 4:
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)


def node_of(cluster: Cluster, handle: Any) -> Any:
    place = handle._process.place
    node_id = placement_group_table(place.group)["bundles_to_node_id"][place.index]
    return next(node for node in cluster.worker_nodes if node.node_id == node_id)


def removed(cluster: Cluster) -> Strike:
    return lambda handle: cluster.remove_node(node_of(cluster, handle), allow_graceful=False)


def raylet_killed(cluster: Cluster) -> Strike:
    def strike(handle: Any) -> None:
        node = node_of(cluster, handle)
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        cluster.worker_nodes.remove(node)

    return strike


def striking_engine(strike: Strike, struck: list[float]) -> Any:
    """The first engine, once it works for weight version 2."""
    look = EnginePool._look

    def look_and_strike(pool: EnginePool, *arguments: Any) -> Any:
        seat = pool._seats["policy"][0]
        if not struck and seat.groups and pool._published["policy"].version == 2:
            struck.append(time.time())
            strike(seat.handle)
        return look(pool, *arguments)

    return patch.object(EnginePool, "_look", look_and_strike)


def striking_rank(strike: Strike, struck: list[float]) -> Any:
    """The policy, as it begins to train step 3."""
    update = Trainer.update

    def update_and_strike(trainer: Trainer, batch: Any, step: int) -> Any:
        if not struck and step == 3:
            struck.append(time.time())
            strike(trainer._roles["policy"][0])
        return update(trainer, batch, step)

    return patch.object(Trainer, "update", update_and_strike)


def row(fault: str, directory: Path, struck: float, lost: str) -> str:
    told = [event for event in events.read(Storage(directory))[0] if event["kind"] == "warning"]
    noticed, again = (
        next((f"{e['time'] - struck:.1f} s" for e in told if any(each in e["message"] for each in words)), "not seen")
        for words in (("is lost", "start again"), ("serves again", "are there again"))
    )
    return f"| {fault} | {noticed} | {again} | {lost} |"


if __name__ == "__main__":
    main()
