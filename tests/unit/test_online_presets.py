"""Every preset through trainer, policy and reference on a real model; only DeepSpeed is replaced, by plain torch."""

import numpy as np
import pytest
import tiny_models
import torch
from online_algorithms import MAX_NEW_TOKENS, algorithm, settings

from rlpipe.data.flow import FinishReason, Group, Prompt, Score, Trajectory, VersionSpan
from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.recipe.algorithm import PRESETS
from rlpipe.recipe.model import PretrainedModel
from rlpipe.recipe.roles import PolicyTraining
from rlpipe.runtime.local import LocalHandle
from rlpipe.training import policy as policy_module
from rlpipe.training.distributed import Rank
from rlpipe.training.metrics import Mean
from rlpipe.training.policy import Policy, PolicySpec
from rlpipe.training.reference import Reference, ReferenceSpec

GROUP = 4


class PlainEngine:
    """A model and SGD, with the training engine's interface; keeps the last gradient to be looked at."""

    def __init__(self, model, *_):
        self.model = self.module = model
        self.world, self.last = 1, None

    def backward(self, loss, last):
        loss.backward()

    def step(self):
        self.last = torch.cat([p.grad.flatten() for p in self.model.parameters()])
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter -= 0.05 * parameter.grad
                parameter.grad = None
        return 0.05, float(self.last.norm())


class Critic:
    """Expects half a reward everywhere."""

    def values(self, shard):
        return np.full(len(shard.batch.tokens_N), 0.5, np.float32) * shard.batch.mask_N

    def update(self, shard):
        assert shard.batch.returns_N is not None and shard.batch.weights_N is not None
        return {"value/loss": Mean(1.0, 1.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_models.save_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def without_deepspeed(monkeypatch):
    monkeypatch.setattr(policy_module, "TrainingEngine", PlainEngine)
    monkeypatch.setattr(policy_module, "join", lambda rank, seconds: torch.device("cpu"))


def groups(count=4):
    """Ragged responses; the third of each group has an environment's token in it."""
    rng = np.random.default_rng(0)
    return [_group(str(g), rng) for g in range(count)]


def _group(group_id, rng):
    prompt = Prompt(group_id, rng.integers(6, 200, 3).astype(np.int32), "")
    trajectories = tuple(_trajectory(group_id, i, prompt, rng) for i in range(GROUP))
    rewards = [*rng.integers(0, 2, GROUP - 2), 1, 0]
    return Group(group_id, prompt, trajectories, ("",) * GROUP, tuple(Score(float(r), {}) for r in rewards))


def _trajectory(group_id, index, prompt, rng):
    length = int(rng.integers(4, MAX_NEW_TOKENS))
    mask = np.ones(length, np.int8)
    mask[1] = index != 2
    return Trajectory(
        group_id, group_id, index, prompt.tokens, rng.integers(6, 200, length).astype(np.int32), mask,
        (-5 * mask).astype(np.float32), (VersionSpan(0, 0),), FinishReason.STOP,
    )  # fmt: skip


def setup(folder, name, budget=10_000, minibatches=1, **changes):
    given = PretrainedModel(path=folder)
    spec = PolicySpec(given, folder, settings(name, **changes), MAX_NEW_TOKENS, 0.8, total_steps=5, dtype="float32")
    policy = Policy(spec, Rank())
    reference = Reference(ReferenceSpec(given, folder, 0.8, "float32"), Rank())
    roles = {"policy": [policy], "reference": [reference], "critic": [Critic()]}
    handles = {role: [LocalHandle(role, rank) for rank in ranks] for role, ranks in roles.items()}
    training = PolicyTraining(tokens_per_micro_batch=budget, minibatches=minibatches)
    return policy, Trainer(handles, algorithm(name, **changes), training, GROUP, 60.0)


def step(trainer, step=1):
    batch, metrics = trainer.batch(groups())
    return batch, metrics | trainer.update(batch, step)


@pytest.mark.parametrize("name", PRESETS)
def test_a_step_raises_what_paid_and_lowers_what_did_not(folder, name):
    _, trainer = setup(folder, name)
    batch, metrics = step(trainer)
    after, _ = trainer.batch(groups())
    assert all(np.isfinite(value) for value in metrics.values()) and metrics["grad_norm"] > 0
    assert not batch.advantages_N[batch.mask_N == 0].any(), "nor where the environment wrote"
    before_N, after_N = (batch.old_logprobs_N, after.old_logprobs_N)
    if before_N is None:  # with one update it was not asked for
        _, fresh = setup(folder, name)
        before_N, after_N = (t._ask("policy", Policy.logprobs, batch)() for t in (fresh, trainer))
    assert ((after_N - before_N) * batch.advantages_N * batch.weights_N).sum() > 0


@pytest.mark.parametrize("name", ["ppo", "gspo", "rloo", "dr_grpo", "online_dpo"])
def test_micro_batches_change_no_gradient_of_the_whole_way(folder, name):
    found = []
    for budget in (10_000, 30, 1):
        policy, trainer = setup(folder, name, budget)
        _, metrics = step(trainer)
        found.append((policy._engine.last, metrics["loss"]))
    scale = float(found[0][0].abs().max())
    for gradient, loss in found[1:]:
        torch.testing.assert_close(gradient / scale, found[0][0] / scale, atol=2e-5, rtol=1e-4)
        assert loss == pytest.approx(found[0][1], abs=1e-5)


def test_the_kl_to_the_reference_is_zero_at_first_and_then_grows(folder):
    _, trainer = setup(folder, "grpo", kl={"coefficient": 0.1})
    assert step(trainer)[1]["reference_kl"] == pytest.approx(0.0, abs=1e-7)
    assert step(trainer, 2)[1]["reference_kl"] > 1e-8


def test_several_updates_measure_the_mismatch_before_the_first(folder):
    _, trainer = setup(folder, "grpo", minibatches=2, correction={"kind": "tis"})
    batch, metrics = step(trainer)
    gap = np.abs(batch.old_logprobs_N - batch.behaviour_logprobs_N)[batch.mask_N > 0]
    assert metrics["mismatch/abs"] == pytest.approx(gap.mean(), rel=1e-4)
    assert 0 <= metrics["correction/cut"] <= 1 and 0 < metrics["correction/factor"] <= 2.0
