"""Whole runs with vLLM under Ray: engines and policy in turns on the same GPUs, and side by side on their own. Every
publish is proven by probes, so that a run which comes to its end has had the right weights in its engines."""

from pathlib import Path

import pytest
import torch
from online_runs import REWARD, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here"),
]

RECIPE = """
task: rl
name: on-gpu
model: {scratch: qwen2, hidden_size: 512, layers: 4, heads: 8, kv_heads: 4, intermediate_size: 1024}
data: {kind: arithmetic, largest: 9, heldout: 16}
rewards: {mix: [{kind: python, name: digits, function: digits.py:share}]}
algorithm: {name: grpo, group_size: 4}
schedule: {steps: 3, prompts_per_step: 8}
train: {optimizer: {learning_rate: 1e-4}, save_steps: 2}
rollout: {max_new_tokens: 6, gpu_memory_utilization: 0.3}
evaluation: {prompts: 8, every: 3, samples: 2, pass_at: [1, 2]}
"""


@pytest.fixture
def recipe_file(tmp_path) -> Path:
    (tmp_path / "digits.py").write_text(REWARD)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def needs(gpus: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(torch.cuda.device_count() < gpus, reason=f"needs {gpus} GPUs")


IN_TURNS = ("placement=colocated", "publishing.transport=ipc")
TWO_RANKS = ("train.ranks=2", "train.zero_stage=3")
ON_THEIR_OWN = ("publishing.transport=nccl",)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(IN_TURNS, id="1 GPU"),
        pytest.param((*IN_TURNS, "publishing.transport=object_store"), id="1 GPU, over host memory"),
        pytest.param(("placement=colocated", "adapter.kind=lora"), id="1 GPU, adapter"),
        pytest.param((*IN_TURNS, *TWO_RANKS, "rollout.engines=2"), marks=needs(2), id="2 GPUs"),
        pytest.param((*IN_TURNS, *TWO_RANKS, "rollout.tensor_parallel=2"), marks=needs(2), id="one engine on 2 GPUs"),
        pytest.param(ON_THEIR_OWN, marks=needs(2), id="1 + 1 GPUs"),
        pytest.param((*ON_THEIR_OWN, "rollout.engines=2"), marks=needs(3), id="1 + 2 GPUs"),
        pytest.param((*ON_THEIR_OWN, "rollout.tensor_parallel=2"), marks=needs(3), id="1 GPU + one engine on 2"),
    ],
)  # fmt: skip
def test_a_run_comes_to_its_end(recipe_file, tmp_path, changes):
    metrics = train(recipe_file, tmp_path / "run", *changes, debug=False)
    assert list(metrics) == [1, 2, 3]
    for step in metrics.values():
        assert step["mismatch/abs"] < 0.05
        assert step["probe_difference"] < 0.05
