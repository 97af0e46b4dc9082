"""What a plan says a policy takes of a GPU, beside what torch's allocator had in use at the most."""

import numpy as np
import pytest
import torch

from rlpipe.data.flow import TokenBatch
from rlpipe.plan.hardware import cluster
from rlpipe.plan.stage import Asked
from rlpipe.plan.whole import plan
from rlpipe.recipe.load import load
from rlpipe.recipe.model import ScratchModel
from rlpipe.training.distributed import Rank
from rlpipe.training.microbatch import plan_step
from rlpipe.training.policy import Policy, PolicySpec
from rlpipe.training.sharding import Sharding

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]

MODEL = ScratchModel(
    scratch="qwen2",
    hidden_size=1536,
    layers=12,
    heads=12,
    kv_heads=2,
    intermediate_size=8960,
    max_position_embeddings=512,
)
PROMPT = RESPONSE = 128
GROUPS, GROUP = 4, 8


def shard(ranks: int = 1):
    count, length = GROUPS * GROUP, PROMPT + RESPONSE
    mask_N = np.tile(np.repeat(np.array([0, 1], np.float32), [PROMPT, RESPONSE]), count)
    batch = TokenBatch(
        tokens_N=np.random.default_rng(0).integers(6, 200, count * length, dtype=np.int32),
        offsets_B1=np.arange(count + 1) * length,
        mask_N=mask_N,
        behaviour_logprobs_N=-mask_N,
        advantages_N=mask_N,
        weights_N=mask_N / mask_N.sum(),
    )
    return plan_step(batch, range(count), ranks, tokens_per_micro_batch=16384)[0]


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("train.gradient_checkpointing=true",),
        ("train.zero_stage=2",),
        ("train.zero_stage=3",),
        ("adapter.kind=lora",),
        ("adapter.kind=lora", "model.quantization.load_in_4bit=true"),
        ("model.dtype=float32",),
    ],
    ids=lambda changes: ", ".join(changes) or "full",
)
def test_within_15_percent(folder, changes):
    common = (f"model.path={folder}", f"schedule.prompts_per_step={GROUPS}", f"algorithm.group_size={GROUP}",
              f"rollout.max_new_tokens={RESPONSE}", "train.gradient_checkpointing=false")  # fmt: skip
    recipe = load("gsm8k/grpo", [*common, "rollout.max_model_len=512", *changes])
    spec = PolicySpec(
        model=recipe.model,
        path=folder,
        algorithm=recipe.algorithm.model_dump(exclude={"name", "group_size", "dynamic_sampling"}),
        max_new_tokens=RESPONSE,
        temperature=1.0,
        total_steps=4,
        adapter=recipe.adapter,
        dtype=recipe.model.dtype,
        sharding=Sharding(recipe.train.zero_stage),
        gradient_checkpointing=recipe.train.gradient_checkpointing,
    )
    policy = Policy(spec, Rank())
    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        policy.update(shard())
    [stage] = plan(recipe, cluster("1x80GB", 1, None), Asked(prompt=PROMPT)).stages
    usage = next(role.usage for role in stage.scenes[0].roles if role.name == "policy")
    predicted = sum(count for part, count in usage.peak.items() if part != "CUDA context")
    assert predicted == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
