"""What preflight costs on a cluster that is well: seconds in all, and of each check.

    python benchmarks/preflight.py [--nodes 1 3]

A Ray cluster on this machine, of a head without CPUs, which has the driver, and so many nodes of one CPU. What is
wanted are two training ranks, so that the nodes shake hands where there are several, and a model's folder. The median
of three.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from rlpipe.recipe.training import Resources
from rlpipe.runtime.preflight.survey import survey
from rlpipe.runtime.preflight.wanted import Demand, Wanted

STORE_BYTES = 100 * 1024**2
TIMES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 3])
    for nodes in parser.parse_args().nodes:
        print(told(nodes, measured(nodes)), flush=True)


def measured(nodes: int) -> list[dict[str, float]]:
    """Seconds of each check, and of all, each time."""
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(nodes):
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    with tempfile.TemporaryDirectory() as folder:
        found = [once(Path(folder)) for _ in range(TIMES)]
    ray.shutdown()
    cluster.shutdown()
    return found


def once(folder: Path) -> dict[str, float]:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    train = Demand("training", 2, Resources(cpus=0.5, gpus=0.0), "train", trains=True)
    seconds: dict[str, float] = {}
    begin = time.monotonic()
    survey(
        Wanted([[train]], folder, 120.0, models={"model.path": str(model)}), lambda c, s: seconds.update({c.name: s})
    )
    return seconds | {"all": time.monotonic() - begin}


def told(nodes: int, found: list[dict[str, float]]) -> str:
    median = {name: statistics.median(each[name] for each in found) for name in found[0]}
    slow = ", ".join(f"{name} {s:.1f}" for name, s in median.items() if s >= 0.1 and name != "all")
    times = ", ".join(f"{each['all']:.1f}" for each in found)
    return f"{nodes} nodes and the head: {median['all']:.1f} s ({times}); of them {slow}"


if __name__ == "__main__":
    main()
