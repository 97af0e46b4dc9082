"""vLLM and DeepSpeed in one process, as `--debug` hosts them: both want torch's default process group."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SCRIPT = """
import gc, sys
import numpy as np
import torch

torch.set_num_threads(1)

def main(first, folder):
    start = {"policy": start_policy, "engine": start_engine}
    second = "engine" if first == "policy" else "policy"
    roles = {name: start[name](folder) for name in (first, second)}
    policy, engine = roles["policy"], roles["engine"]
    for version in range(2):
        agree(policy, engine)
        train(policy)
        engine.publish(version + 1, policy.export())
    agree(policy, engine)
    # The next stage of a pipeline: vLLM takes the process group with it when its engine goes.
    del policy, engine, roles
    gc.collect()
    train(start_policy(folder))

def start_policy(folder):
    from test_policy import spec
    from rlpipe.training.distributed import Rank
    from rlpipe.training.policy import Policy
    return Policy(spec(folder, zero_stage=2), Rank())

def start_engine(folder):
    from rlpipe.rollout.engine import EngineSpec
    from rlpipe.rollout.vllm_engine import VllmEngine
    return VllmEngine(EngineSpec("vllm", folder, "float32", (1,), 0, max_num_seqs=16, kv_cache_gib=0.05))

def train(policy):
    from test_policy import shards
    return policy.update(shards(0, 1)[0])

def agree(policy, engine):
    sequences = [np.arange(6, 40, dtype=np.int32), np.arange(90, 120, dtype=np.int32)]
    for ours, theirs in zip(policy.probe(sequences), engine.probe(sequences), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)

main(*sys.argv[1:])
print("both work")
"""


@pytest.mark.parametrize("first", ["policy", "engine"])
def test_vllm_and_deepspeed_share_a_process(first, tmp_path):
    folder = tiny_models.save_model(tmp_path / "model")
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, first, str(folder)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "both work" in done.stdout, done.stderr[-4000:]
