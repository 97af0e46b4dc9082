"""Memory that roles give back, and processes that share a GPU."""

import dataclasses
import gc

import numpy as np
import pytest
import torch
from online_algorithms import MAX_NEW_TOKENS, weights_of_flat
from online_algorithms import algorithm as online_algorithm
from online_algorithms import settings as algorithm_settings

from rlpipe.data.flow import TokenBatch
from rlpipe.recipe.adapter import LoraAdapter
from rlpipe.recipe.model import PretrainedModel, ScratchModel
from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.training import Resources
from rlpipe.rollout.engine import EngineSpec
from rlpipe.runtime.handle import Within, results
from rlpipe.runtime.roles import RoleSpec
from rlpipe.training.distributed import Rank
from rlpipe.training.metrics import merge
from rlpipe.training.microbatch import plan_step
from rlpipe.training.policy import Policy, PolicySpec
from rlpipe.training.reference import Reference, ReferenceSpec
from rlpipe.training.sharding import Sharding

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]

MODEL = ScratchModel(scratch="qwen2", hidden_size=1024, layers=4, heads=16, kv_heads=4, intermediate_size=4096)
VOCABULARY = 262


def parameters(folder: str) -> int:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).num_parameters()


def policy_spec(folder: str, sharding: Sharding, **settings) -> PolicySpec:
    return PolicySpec(
        model=PretrainedModel(path=folder),
        path=folder,
        algorithm=algorithm_settings("grpo"),
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=1.0,
        total_steps=5,
        dtype="bfloat16",
        sharding=sharding,
        **settings,
    )


def reference_spec(folder: str, sharding: Sharding) -> ReferenceSpec:
    return ReferenceSpec(PretrainedModel(path=folder), folder, 1.0, "bfloat16", sharding)


def shard(seed: int):
    rng = np.random.default_rng(seed)
    offsets_B1 = np.arange(9) * 20
    mask_N = np.tile(np.arange(20) >= 5, 8).astype(np.float32)
    batch = TokenBatch(
        tokens_N=rng.integers(6, VOCABULARY, 160).astype(np.int32),
        offsets_B1=offsets_B1,
        mask_N=mask_N,
        behaviour_logprobs_N=-5 * mask_N,
        advantages_N=rng.normal(size=160).astype(np.float32) * mask_N,
    )
    batch = dataclasses.replace(batch, weights_N=weights_of_flat(online_algorithm(), batch))
    return plan_step(batch, range(8), 1, tokens_per_micro_batch=80)[0]


def allocated() -> int:
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_policy_that_rests_gives_back_what_only_steps_need(folder, stage):
    policy, never = (Policy(policy_spec(folder, Sharding(stage)), Rank()) for _ in range(2))
    for each in (policy, never):
        each.update(shard(0))
    before = allocated()
    policy.rest()
    given_back = before - allocated()
    assert given_back > 11.5 * parameters(folder), "float32 weights and two means"
    assert policy.export().digest == never.export().digest
    np.testing.assert_array_equal(policy.logprobs(shard(1)), never.logprobs(shard(1)))
    assert merge([policy.update(shard(1))]) == pytest.approx(merge([never.update(shard(1))]), rel=1e-4)
    assert policy.export().digest == never.export().digest


@pytest.mark.parametrize("sharding", [Sharding(2, True), Sharding(3, True), Sharding(3, True, True)], ids=str)
def test_offloading_keeps_memory_free(folder, sharding):
    start = allocated()
    policy = Policy(policy_spec(folder, sharding), Rank())
    metrics = [merge([policy.update(shard(seed))]) for seed in range(2)]
    held = allocated() - start
    del policy
    plain_start = allocated()
    plain = Policy(policy_spec(folder, Sharding(sharding.zero_stage)), Rank())
    expected = [merge([plain.update(shard(seed))]) for seed in range(2)]
    assert allocated() - plain_start - held > 11.5 * parameters(folder)
    for ours, theirs in zip(metrics, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-2, abs=1e-3)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_reference_rests_in_host_memory(folder, stage):
    start = allocated()
    reference = Reference(reference_spec(folder, Sharding(stage, offload_param=True)), Rank())
    answer = reference.logprobs(shard(0))
    assert allocated() - start < 0.3 * parameters(folder), "weights would take 2 bytes each"
    plain = Reference(reference_spec(folder, Sharding()), Rank())
    np.testing.assert_allclose(answer, plain.logprobs(shard(0)), atol=1e-3)


def test_roles_that_share_reserve_one_gpu(folder):
    import ray

    from rlpipe.runtime.ray_runtime import RayRuntime

    ray.init(num_gpus=1, include_dashboard=False)
    runtime = RayRuntime(Deadlines())
    try:
        spec, frozen, one = policy_spec(folder, Sharding(1)), reference_spec(folder, Sharding()), Resources(gpus=1.0)
        owner = RoleSpec("policy", Policy, lambda seat: (spec, Rank()), 1, one, 1, "train")
        guest = RoleSpec("reference", Reference, lambda seat: (frozen, Rank()), 1, one, 1, "reference", shares="policy")
        started = runtime.start([owner, guest])
        started.ready()
        assert ray.available_resources().get("GPU", 0.0) == 0.0
        within = Within("train", 300)
        [ours] = results([started.handles["reference"][0].call(within, Reference.logprobs, shard(0))])
        [theirs] = results([started.handles["policy"][0].call(within, Policy.logprobs, shard(0))])
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    finally:
        runtime.stop()
        ray.shutdown()


def test_vllm_serves_the_adapter_of_a_policy_on_the_same_gpu(folder):
    from rlpipe.rollout.vllm_engine import VllmEngine

    lora = LoraAdapter(kind="lora", r=8)
    policy = Policy(policy_spec(folder, Sharding(2), adapter=lora), Rank())
    engine = VllmEngine(EngineSpec("vllm", folder, "bfloat16", (1,), 0, gpu_memory_utilization=0.3, lora_rank=8))
    probes = [np.arange(6, 40, dtype=np.int32), np.arange(90, 120, dtype=np.int32)]
    base = policy.probe(probes)
    try:
        for version in range(3):
            payload = policy.export()
            assert engine.publish(version, payload).digest == payload.digest
            for ours, theirs in zip(policy.probe(probes), engine.probe(probes), strict=True):
                assert np.abs(ours - theirs).mean() < 0.05
            policy.update(shard(version))
        assert np.abs(policy.probe(probes)[0] - base[0]).max() > 0
    finally:
        engine.close()
