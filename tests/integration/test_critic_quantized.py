"""PPO with QLoRA: a policy on 4-bit weights beside a critic on its own, or on the very same ones."""

import dataclasses

import numpy as np
import pytest
import test_critic_adapter
import test_policy
import tiny_models
import torch
from peft.tuners.lora.bnb import Linear4bit
from test_critic import assert_same_run, train_alone, values_of
from test_critic_adapter import LORA, TRAINED, Together, critic_spec, parameters_of, policy_spec
from test_online import REWARD, assert_same, events, train
from test_online_quantized import quantised
from test_policy import random_batch

from rlpipe.models.load import load_causal_lm
from rlpipe.models.quantized import is_packed
from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load
from rlpipe.training.critic import Critic
from rlpipe.training.distributed import Rank
from rlpipe.training.export import save_pretrained

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tiny_models.save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def dequantized(folder, tmp_path_factory) -> str:
    """The plain model of the 4-bit weights' values."""
    result = tmp_path_factory.mktemp("plain") / "dequantized"
    save_pretrained(load_causal_lm(quantised(folder), folder, torch.float32), folder, result, writer=True)
    return str(result)


def on_4_bits(spec):
    return dataclasses.replace(spec, model=quantised(spec.path))


@pytest.fixture(scope="module")
def alone(dequantized):
    """Metrics of three steps of a LoRA critic on plain weights, and the values after them."""
    critic = Critic(critic_spec(dequantized), Rank())
    return train_alone(critic), values_of(critic, random_batch(5))


@pytest.mark.parametrize("stage", [0, 3])
def test_a_critic_on_4_bits_learns_what_one_on_their_values_does(folder, alone, stage):
    critic = Critic(on_4_bits(critic_spec(folder, stage)), Rank())
    assert critic.sizes() == (TRAINED, 91072 + TRAINED)
    layers = [module for module in critic._engine.model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 14, "every linear layer, the value head not"
    before = [layer.weight.detach().clone() for layer in layers]
    assert_same_run(train_alone(critic), values_of(critic, random_batch(5)), alone)
    if stage == 0:
        assert all(torch.equal(layer.weight, packed) for layer, packed in zip(layers, before, strict=True))


@pytest.mark.parametrize("stage", [0, 2])
def test_policy_and_critic_share_the_packed_weights(folder, dequantized, alone, stage):
    both = Together((on_4_bits(policy_spec(folder, stage)), critic_spec(folder, stage)), Rank())
    held = [{p.data_ptr() for p in role._engine.model.parameters() if is_packed(p)} for role in
            (both.policy, both.critic)]  # fmt: skip
    assert held[0] == held[1] and len(held[0]) == 14
    before = parameters_of(both.policy)
    for seed in range(3):
        both.policy.update(test_policy.shards(seed, 1)[0])
    assert test_critic_adapter.moved(both.policy, before) == set(before)
    assert_same_run(train_alone(both.critic), values_of(both.critic, random_batch(5)), alone)
    plain = test_policy.Policy(test_policy.spec(dequantized, adapter=LORA), Rank())
    test_policy.train_alone(plain)
    shard = test_policy.shards(5, 1)[0]
    np.testing.assert_allclose(both.policy.logprobs(shard), plain.logprobs(shard), atol=1e-5)
    np.testing.assert_allclose(both.policy.reference_logprobs(shard), plain.reference_logprobs(shard), atol=1e-5)


PPO = """
task: rl
name: ppo-qlora-test
model: {path: PATH}
adapter: {kind: lora, r: 4, lora_alpha: 16}
data: {kind: arithmetic, largest: 9, heldout: 16}
rewards: {mix: [{kind: python, name: digits, function: digits.py:share}]}
algorithm: {name: ppo, group_size: 2, kl: {coefficient: 0.05}}
schedule: {steps: 3, prompts_per_step: 8}
train: {threads: 1, optimizer: {learning_rate: 1e-2}}
critic: {threads: 1, adapter: {kind: lora, r: 4}, optimizer: {learning_rate: 1e-2}}
rollout: {engine: transformers, max_new_tokens: 6, threads: 1}
evaluation: {prompts: 8, every: 3, pass_at: [], correct_at: null}
"""
IN_4_BITS = "model.quantization={load_in_4bit: true}"
ON_ONE_BASE = ("critic.share=base", "critic.threads=0")


def recipe_file(folder: str, directory):
    (directory / "digits.py").write_text(REWARD)
    (directory / "recipe.yaml").write_text(PPO.replace("PATH", folder))
    return directory / "recipe.yaml"


@pytest.fixture(scope="module")
def plain_run(dequantized, tmp_path_factory):
    """PPO with LoRA on the plain model of the 4-bit weights' values."""
    directory = tmp_path_factory.mktemp("plain-run")
    return train(recipe_file(dequantized, directory), directory / "run")


@pytest.mark.parametrize("where", [(), ON_ONE_BASE], ids=["own base", "one base"])
def test_ppo_on_4_bits_is_ppo_on_their_values(folder, plain_run, tmp_path, where):
    metrics = train(recipe_file(folder, tmp_path), tmp_path / "run", IN_4_BITS, *where)
    for step in metrics.values():
        assert step["probe_difference_max"] < 1e-4 and step["mismatch/abs"] < 1e-4
        assert step["publish/bytes"] < 8192 * 4 * 1.1, "the adapter alone"
    assert metrics[1]["reference_kl"] == pytest.approx(0.0, abs=1e-4) and metrics[3]["reference_kl"] > 1e-4
    assert_same(plain_run, metrics, within=1e-3)
    for step, plain in plain_run.items():
        assert metrics[step]["value/loss"] == pytest.approx(plain["value/loss"], abs=1e-3)
    [policy, critic] = [e["message"] for e in events(tmp_path / "run", "note") if "trainable" in e["message"]]
    assert policy == "trainable: 8,192 of 99,264 (8.3 %), as predicted"
    assert critic.startswith("critic, trainable: 8,256 of 99,328")


@pytest.mark.slow
def test_vllm_serves_it_and_the_critic_may_stay_whole(folder, tmp_path):
    """The critic trains all of the weights that the policy's 4 bits were made of."""
    vllm = ("rollout.engine=vllm", "rollout.kv_cache_gib=0.05", "critic.adapter=null", "schedule.steps=2")
    for step in train(recipe_file(folder, tmp_path), tmp_path / "run", IN_4_BITS, *vllm).values():
        assert step["probe_difference_max"] < 1e-3 and step["mismatch/abs"] < 1e-3
        assert step["critic/grad_norm"] > 0


def test_a_critic_s_adapter_must_learn_on_the_policy_s_4_bits(folder, tmp_path):
    pissa = (IN_4_BITS, "critic.adapter.init_lora_weights=pissa")
    with pytest.raises(RecipeError, match=r"critic\.adapter\.init_lora_weights=pissa takes weights apart"):
        load(recipe_file(folder, tmp_path), pissa)
