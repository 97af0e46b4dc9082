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
from rlpipe.rollout.carriers import ObjectStore
from rlpipe.rollout.delivery import Publication
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.pool import EnginePool
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.handle import Within
from rlpipe.runtime.local import LocalRuntime
from rlpipe.runtime.ray_runtime import RayRuntime
from rlpipe.runtime.roles import RoleSpec
from rlpipe.weights.packing import pack
from rlpipe.weights.payload import Exported, Payload
from rlpipe.weights.verify import Verifier

pytestmark = pytest.mark.integration
SOON = Within("publish", 60.0)
PROBE = np.arange(20, dtype=np.int32)


class Trainer:
    """Has weights to publish."""

    def __init__(self, folder: str) -> None:
        self._model = tiny_models.scramble(tiny_models.load(folder), seed=3)

    def export(self) -> Payload:
        return pack(self._model.named_parameters())

    def exported(self) -> Exported:
        payload = self.export()
        return Exported(payload.digest, payload.nbytes)

    def probe(self) -> list[np.ndarray]:
        return [tiny_models.teacher_forced(self._model, PROBE[:1], PROBE[1:])]


def answers(runtime, folder: Path, engines: int) -> tuple[dict[str, list], list[float]]:
    """Every group's tokens by version 1, and how far each engine is off at the probe."""
    spec = EngineSpec("transformers", str(folder), "float32", (END,), version=None)
    few, path = Resources(cpus=0.1, gpus=0.0), {"PYTHONPATH": os.pathsep.join(sys.path)}
    started = runtime.start(
        [
            RoleSpec("engine", RolloutWorker, lambda seat: (spec,), engines, few, 1, "rollout", path),
            RoleSpec("policy", Trainer, lambda seat: (str(folder),), 1, few, 1, "training", path),
        ]
    )
    started.ready()
    pool = EnginePool({"policy": started.handles["engine"]}, Deadlines(), max_restarts=0)
    methods = (Trainer.export, Trainer.exported, Trainer.probe)
    packed, exported, expected = (started.handles["policy"][0].call(SOON, method) for method in methods)
    carrier = ObjectStore(packed, SOON)
    delivered = pool.publish("policy", Publication(1, carrier, exported, expected, [PROBE], Verifier(1e-4), SOON))
    assert len(delivered) == engines
    pool.submit("policy", [request(i, prompt_length=4 + i) for i in range(6)])
    groups = []
    while pool.outstanding:
        groups += pool.finished(1.0)
    tokens = {group[0].group_id: [t.response_tokens.tolist() for t in group] for group in groups}
    return tokens, [engine.found.largest_difference for engine in delivered.values()]


def test_actors_answer_as_this_process_does(ray_cluster, tmp_path):
    folder = tiny_models.save_model(tmp_path)
    runtime = RayRuntime(Deadlines(start=120, placement=20))
    try:
        there, probed_there = answers(runtime, folder, engines=2)
    finally:
        runtime.stop()
    here, probed_here = answers(LocalRuntime(), folder, engines=1)
    assert here == there and len(here) == 6
    assert max(probed_there + probed_here) < 1e-5
