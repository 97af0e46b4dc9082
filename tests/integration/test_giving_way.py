"""A policy that leaves its GPU to an engine keeps nothing there, whatever DeepSpeed keeps beside the weights, and goes
on as if it had stayed. Here on a CPU, where the memory that counts is that of tensors which no file backs."""

import gc
from dataclasses import replace

import pytest
import tiny_models
import torch
from test_policy import random_batch, spec

from rlpipe.training.distributed import Rank
from rlpipe.training.metrics import merge
from rlpipe.training.microbatch import plan_step
from rlpipe.training.policy import Policy

pytestmark = pytest.mark.integration

# Stage 1 in bfloat16 is another optimizer of DeepSpeed's than in float32, with gradients that stay.
STAGES = [(0, "float32"), (2, "bfloat16"), (3, "bfloat16")]
LONG = [(1, "bfloat16"), (3, "float32")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_models.save_model(tmp_path_factory.mktemp("model")))


def storages() -> dict[int, int]:
    """Bytes of everything in memory that some tensor of this process stands on."""
    gc.collect()
    found = (t.untyped_storage() for t in gc.get_objects() if isinstance(t, torch.Tensor) and t.layout == torch.strided)
    return {s._cdata: s.nbytes() for s in found if s.resizable()}


@pytest.mark.parametrize(("stage", "dtype"), [*STAGES, *(pytest.param(*each, marks=pytest.mark.soak) for each in LONG)])
def test_nothing_is_left_and_nothing_is_changed(folder, stage, dtype):
    batches = [plan_step(random_batch(seed), range(9), 1, tokens_per_micro_batch=100)[0] for seed in range(3)]
    plain = replace(spec(folder, stage), dtype=dtype)
    stays = Policy(plain, Rank())
    others = storages()
    leaves = Policy(replace(plain, gives_way=True), Rank())
    for batch in batches:
        assert merge([leaves.update(batch)]) == merge([stays.update(batch)])
        before = sum(size for key, size in storages().items() if key not in others)
        leaves.give_way()
        left = sum(size for key, size in storages().items() if key not in others)
        # What there is to go: at least two running means in float32.
        assert before > 8 * parameters(leaves)
        # What stays: the copies in host memory, which on a CPU are tensors like all others, and a few scalars.
        assert left - in_host_memory(leaves) < 4096
        assert leaves.export().digest == stays.export().digest
        leaves.give_way()


def parameters(policy: Policy) -> int:
    return policy.sizes()[1]


def in_host_memory(policy: Policy) -> int:
    rests = (policy._engine._resting, policy._engine._all_resting)
    return sum(host.nbytes() for rest in rests if rest is not None for _, host in rest._away)
