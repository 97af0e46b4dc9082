"""One part of a run, started alone and timed:  python -m step.piece NAME MODEL_FOLDER"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from step.contest import grpo
from step.watch import Watch

Parts = dict[str, float]


def main() -> None:
    name, folder = sys.argv[1:]
    print(json.dumps(PIECES[name](Path(folder))))


def ray(folder: Path) -> Parts:
    watch = Watch()
    import ray

    watch.lap("import")
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    watch.lap("start")
    ray.get(ray.remote(lambda: 1).remote())
    watch.lap("first call")
    ray.shutdown()
    return watch.parts


def policy(folder: Path) -> Parts:
    watch = Watch()
    import deepspeed  # noqa: F401

    from rlpipe.data.flow import TokenBatch
    from rlpipe.data.storage import Storage
    from rlpipe.observe.events import EventLog
    from rlpipe.pipelines import roles
    from rlpipe.pipelines.stage import Stage
    from rlpipe.recipe.load import load
    from rlpipe.runtime.local import LocalRuntime
    from rlpipe.runtime.roles import seats_at
    from rlpipe.training.microbatch import plan_step

    watch.lap("import")
    with tempfile.TemporaryDirectory() as scratch:
        events = EventLog(Storage(Path(scratch)), stage=None, views=[])
        recipe = load(grpo((), False).recipe, [f"model.path={folder}"])
        spec = roles.policy(Stage(recipe, Path(scratch), LocalRuntime(), events, debug=True))
        [seat] = seats_at([("here", "127.0.0.1", 0)])
        trained = spec.role(*spec.arguments(seat))
    watch.lap("load, DeepSpeed init")
    zeros_N = np.zeros(64, np.float32)
    offsets_B1 = np.array([0, 32, 64])
    batch = TokenBatch(
        np.full(64, 10, np.int32),
        offsets_B1,
        zeros_N + 1,
        zeros_N - 5,
        advantages_N=zeros_N,
        weights_N=zeros_N + 1 / 64,
    )
    trained.update(plan_step(batch, range(2), 1, 4096)[0])
    watch.lap("first step")
    return watch.parts


def vllm(folder: Path) -> Parts:
    watch = Watch()
    import vllm.v1.engine.core  # noqa: F401

    return _engine("vllm", folder, watch)


def transformers(folder: Path) -> Parts:
    watch = Watch()
    import rlpipe.rollout.transformers_engine  # noqa: F401

    return _engine("transformers", folder, watch)


def _engine(name: str, folder: Path, watch: Watch) -> Parts:
    from rlpipe.data.flow import GroupRequest, Sampling
    from rlpipe.rollout.worker import EngineSpec, RolloutWorker

    watch.lap("import")
    worker = RolloutWorker(EngineSpec(name, str(folder), "float32", (1,), 0))
    watch.lap("load")
    worker.submit([GroupRequest("g", "p", np.array([3, 4, 5], np.int32), (1, 2), Sampling(4, 1.0, ()))])
    while worker.health().outstanding:
        worker.advance(1.0)
    watch.lap("first request")
    return watch.parts


PIECES: dict[str, Callable[[Path], Parts]] = {
    "ray": ray, "policy": policy, "vllm": vllm, "transformers": transformers,
}  # fmt: skip

if __name__ == "__main__":
    main()
