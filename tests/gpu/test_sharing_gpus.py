"""Engines and a policy on one GPU in turns, engines over several GPUs, and attention: what only a GPU can show."""

import gc

import numpy as np
import pytest
import torch
from test_roles_on_gpu import MODEL, policy_spec, shard

from rlpipe.recipe.model import PretrainedModel
from rlpipe.rollout.engine import EngineSpec
from rlpipe.training.distributed import Rank
from rlpipe.training.metrics import merge
from rlpipe.training.policy import Policy
from rlpipe.training.sharding import Sharding

__all__ = ["MODEL"]  # of the fixture `folder`

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]

PROBES = [np.arange(6, 40, dtype=np.int32), np.arange(90, 120, dtype=np.int32)]


def in_use() -> int:
    """Bytes of the GPU that any process holds."""
    gc.collect()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


def agree(policy: Policy, engine) -> None:
    for ours, theirs in zip(policy.probe(PROBES), engine.probe(PROBES), strict=True):
        assert np.abs(ours - theirs).mean() < 0.05


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_policy_gives_its_gpu_to_other_processes(folder, stage):
    stays = Policy(policy_spec(folder, Sharding(stage)), Rank())
    start = in_use()
    leaves = Policy(policy_spec(folder, Sharding(stage), gives_way=True), Rank())
    for seed in range(2):
        assert merge([leaves.update(shard(seed))]) == pytest.approx(merge([stays.update(shard(seed))]), rel=1e-4)
        held = in_use() - start
        leaves.give_way()
        assert in_use() - start < 0.1 * held
        assert leaves.export().digest == stays.export().digest


@pytest.mark.parametrize("lora_rank", [None, 8], ids=["weights are gone", "weights are kept"])
def test_vllm_sleeps_and_serves_what_is_published_next(folder, lora_rank):
    from rlpipe.recipe.adapter import LoraAdapter
    from rlpipe.rollout.vllm_engine import VllmEngine

    adapter = LoraAdapter(kind="lora", r=lora_rank) if lora_rank else None
    policy = Policy(policy_spec(folder, Sharding(2), adapter=adapter), Rank())
    spec = EngineSpec("vllm", folder, "bfloat16", (1,), 0, gpu_memory_utilization=0.3, sleeps=True, lora_rank=lora_rank)
    engine = VllmEngine(spec)
    try:
        for version in range(3):
            engine.publish(version, policy.export())
            agree(policy, engine)
            awake = in_use()
            engine.sleep()
            total = torch.cuda.mem_get_info()[1]
            assert awake - in_use() > 0.2 * total, "KV cache and weights"
            policy.update(shard(version))
    finally:
        engine.close()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_vllm_over_two_gpus(folder):
    from rlpipe.rollout.vllm_engine import VllmEngine

    policy = Policy(policy_spec(folder, Sharding(2)), Rank())
    engine = VllmEngine(EngineSpec("vllm", folder, "bfloat16", (1,), 0, gpu_memory_utilization=0.3, tensor_parallel=2))
    try:
        for version in range(2):
            engine.publish(version, policy.export())
            agree(policy, engine)
            policy.update(shard(version))
    finally:
        engine.close()


def test_flash_attention_and_sdpa_say_the_same(folder):
    from transformers.utils import is_flash_attn_2_available

    from rlpipe.models.load import load_causal_lm
    from rlpipe.training.forward import sequence_logprobs

    if not is_flash_attn_2_available():
        pytest.skip("the package flash-attn is not installed")
    device = torch.device("cuda")
    answers = []
    for attention in ("auto", "sdpa"):
        spec = PretrainedModel(path=folder, attn_implementation=attention)
        model = load_causal_lm(spec, folder, torch.bfloat16).to(device).eval()
        assert (model.config._attn_implementation == "flash_attention_2") == (attention == "auto")
        answers.append(sequence_logprobs(model, PROBES, device))
    for ours, theirs in zip(*answers, strict=True):
        assert np.abs(ours - theirs).mean() < 0.05
