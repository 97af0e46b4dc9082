"""The pool over engines in Ray actors: the same answers as in this process, weights through the object store."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from tiny_models import END, request

from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.training import Resources
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.pool import EnginePool
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.handle import Within
from rlpipe.runtime.local import LocalRuntime
from rlpipe.runtime.ray_runtime import RayRuntime
from rlpipe.runtime.roles import RoleSpec
from rlpipe.weights.packing import pack
from rlpipe.weights.payload import Payload

pytestmark = pytest.mark.integration
PROBE = np.arange(20, dtype=np.int32)


class Trainer:
    """Has weights to publish."""

    def __init__(self, folder: str) -> None:
        self._model = tiny_models.scramble(tiny_models.load(folder), seed=3)

    def export(self) -> Payload:
        return pack(self._model.named_parameters())


def answers(runtime, folder: Path, engines: int) -> tuple[dict[str, list], list[np.ndarray]]:
    """Every group's tokens by version 1, and what each engine says to the probe."""
    spec = EngineSpec("transformers", str(folder), "float32", (END,), version=None)
    few, path = Resources(cpus=0.1, gpus=0.0), {"PYTHONPATH": os.pathsep.join(sys.path)}
    started = runtime.start(
        [
            RoleSpec("engine", RolloutWorker, lambda seat: (spec,), engines, few, 1, "rollout", path),
            RoleSpec("policy", Trainer, lambda seat: (str(folder),), 1, few, 1, "training", path),
        ]
    )
    started.ready()
    pool = EnginePool({"policy": started.handles["engine"]}, Deadlines())
    payload = started.handles["policy"][0].call(Within("publish", 60.0), Trainer.export)
    receipts = pool.publish("policy", 1, payload)
    assert len(receipts) == engines and len({r.digest for r in receipts.values()}) == 1
    pool.submit("policy", [request(i, prompt_length=4 + i) for i in range(6)])
    groups = []
    while pool.outstanding:
        groups += pool.finished(1.0)
    tokens = {group[0].group_id: [t.response_tokens.tolist() for t in group] for group in groups}
    return tokens, [answer[0] for answer in pool.probe("policy", [PROBE]).values()]


def test_actors_answer_as_this_process_does(ray_cluster, tmp_path):
    folder = tiny_models.save_model(tmp_path)
    runtime = RayRuntime(Deadlines(start=120, placement=20))
    try:
        there, probed_there = answers(runtime, folder, engines=2)
    finally:
        runtime.stop()
    here, probed_here = answers(LocalRuntime(), folder, engines=1)
    assert here == there and len(here) == 6
    for answer in probed_there:
        np.testing.assert_allclose(answer, probed_here[0], atol=1e-5)
