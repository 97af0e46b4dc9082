"""The trainer's order of things, with roles that only take notes; and dynamic sampling."""

import math
from dataclasses import replace

import numpy as np
import pytest
from online_algorithms import algorithm
from sample_groups import make_group

from rlpipe.data.flow import Failure, FinishReason, Score
from rlpipe.pipelines.online.dynamic_sampling import flat, replace_flat
from rlpipe.pipelines.online.metrics import sample_metrics
from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.recipe.roles import PolicyTraining
from rlpipe.runtime.local import LocalHandle
from rlpipe.training.metrics import Mean

FAILED = Failure("error", "by design")


def group(*rewards, group_id="g"):
    outcomes = tuple(FAILED if r is None else Score(float(r), {}) for r in rewards)
    return replace(make_group(["x"] * len(rewards), group_id=group_id), outcomes=outcomes)


class Role:
    """Answers with constants, and writes down what it was asked, and when its answers were waited for."""

    def __init__(self, name, notes, answer, metrics=None):
        self.name, self.notes, self.answer, self.metrics = name, notes, answer, metrics or {}
        self.shards = []

    def logprobs(self, shard):
        self.notes.append(f"{self.name}.logprobs")
        return np.full(len(shard.batch.tokens_N), self.answer, np.float32) * shard.batch.mask_N

    def values(self, shard):
        self.notes.append(f"{self.name}.values")
        return np.full(len(shard.batch.tokens_N), self.answer, np.float32)

    def rest(self):
        self.notes.append(f"{self.name}.rest")

    def reference_logprobs(self, shard):
        self.notes.append(f"{self.name}.reference_logprobs")
        return np.full(len(shard.batch.tokens_N), -1.5, np.float32) * shard.batch.mask_N

    def update(self, shard):
        self.notes.append(f"{self.name}.update")
        self.shards.append(shard)
        return {name: Mean(value, 1.0) for name, value in self.metrics.items()}


class NotingHandle(LocalHandle):
    """Notes when a result is waited for."""

    def call(self, within, method, /, *args):
        pending, notes = super().call(within, method, *args), self._role.notes
        result = pending.result
        pending.result = lambda: (notes.append(f"wait {self.name}"), result())[1]
        return pending


class Setup:
    def __init__(
        self, name="grpo", minibatches=1, epochs=1, warmup=0, ranks=1, turns=False, own_reference=True, **changes
    ):
        self.notes = []
        roles = {
            "policy": [Role("policy", self.notes, -1.0, {"loss": 1.0, "reference_kl": 0.5}) for _ in range(ranks)],
            "reference": [Role("reference", self.notes, -1.5)],
            "critic": [Role("critic", self.notes, 0.25, {"value/loss": 2.0})],
        }
        self.policies, self.critic = roles["policy"], roles["critic"][0]
        self.policy = self.policies[0]
        if not own_reference:
            del roles["reference"]
        handles = {name: [NotingHandle(name, role) for role in ranks] for name, ranks in roles.items()}
        training = PolicyTraining(minibatches=minibatches, epochs=epochs)
        self.trainer = Trainer(handles, algorithm(name, **changes), training, 2, 10.0, warmup, turns)

    def step(self, groups, step=1):
        batch, metrics = self.trainer.batch(groups)
        return batch, metrics | self.trainer.update(batch, step)


GROUPS = [group(1, 0), group(0.5, None), group(0, 2), group(1, 1)]


def test_grpo_asks_nobody_and_updates_once():
    it = Setup()
    batch, metrics = it.step(GROUPS)
    assert it.notes == ["policy.update", "wait policy"]
    assert batch.old_logprobs_N is None and batch.reference_logprobs_N is None and batch.returns_N is None
    assert metrics["loss"] == 1.0 and metrics["reward_shaped"] == pytest.approx(5.5 / 7)
    assert not {"kl_coefficient", "value_mean", "reference_logprob"} & metrics.keys()


def test_ppo_asks_everybody_at_once_then_trains_policy_and_critic_at_once():
    it = Setup("ppo")
    batch, metrics = it.step(GROUPS)
    asked, updates = it.notes[:6], it.notes[6:]
    assert asked == [
        "reference.logprobs", "policy.logprobs", "critic.values", "wait reference", "wait policy", "wait critic",
    ]  # fmt: skip
    assert updates == ["policy.update", "critic.update", "wait policy", "wait critic"]
    response = batch.mask_N > 0
    np.testing.assert_allclose(batch.values_N[response], 0.25)
    # The first response earns 1, and its second token pays 0.02 * (-1 + 1.5) for leaving the reference, as its first.
    np.testing.assert_allclose(batch.returns_N[2:4], batch.values_N[2:4] + _raw_advantages(1.0), atol=1e-6)
    assert it.critic.shards[0].batch.returns_N is not None
    assert (metrics["value/loss"], metrics["kl_coefficient"]) == (2.0, 0.02)
    assert metrics["value_mean"] == pytest.approx(0.25)
    assert metrics["reference_logprob"] == -1.5


def _raw_advantages(reward):
    penalty, value, lam = 0.02 * 0.5, 0.25, 0.95
    last = reward - penalty - value
    return [-penalty + value - value + lam * last, last]


def test_several_updates_have_old_logprobs_and_weights_of_their_own():
    it = Setup(minibatches=2, epochs=2)
    it.step(GROUPS)
    assert it.notes[0] == "policy.logprobs" and it.notes.count("policy.update") == 4
    sums = [shard.batch.weights_N.sum() for shard in it.policy.shards]
    np.testing.assert_allclose(sums, 1.0, rtol=1e-6)
    tokens = [np.count_nonzero(shard.batch.mask_N) for shard in it.policy.shards]
    assert tokens == [6, 8, 6, 8], "the failed response is in no mean"


def test_two_ranks_share_the_weights_of_one_step():
    it = Setup(ranks=2)
    it.step(GROUPS)
    shards = [role.shards[0] for role in it.policies]
    assert all(shard.batch.mask_N.any() for shard in shards)
    assert sum(shard.batch.weights_N.sum() for shard in shards) == pytest.approx(1.0)


def test_the_critic_learns_alone_during_its_warmup():
    it = Setup("ppo", warmup=1)
    _, first = it.step(GROUPS, step=1)
    assert "policy.update" not in it.notes and "loss" not in first and first["value/loss"] == 2.0
    it.step(GROUPS, step=2)
    assert it.notes.count("policy.update") == 1 and it.notes.count("critic.update") == 2
    without = Setup("grpo", warmup=1)
    without.step(GROUPS, step=1)
    assert without.notes.count("policy.update") == 1, "there is no critic to wait for"


def test_in_the_same_processes_policy_and_critic_take_turns_and_make_room():
    it = Setup("ppo", minibatches=2, turns=True)
    batch, _ = it.trainer.batch(GROUPS)
    it.notes.clear()
    it.trainer.update(batch, step=1)
    done = [note for note in it.notes if not note.startswith("wait")]
    assert done == [
        "policy.update", "policy.update", "policy.rest", "critic.update", "critic.update", "critic.rest",
    ]  # fmt: skip
    beside = Setup("ppo", minibatches=2)
    beside.step(GROUPS)
    assert [n for n in beside.notes if n.endswith("update")] == ["policy.update", "critic.update"] * 2
    assert not any(note.endswith("rest") for note in beside.notes)


def test_without_a_reference_of_its_own_the_policy_answers_as_one():
    it = Setup(kl={"coefficient": 0.1}, own_reference=False)
    batch, _ = it.step(GROUPS)
    assert it.notes[0] == "policy.reference_logprobs"
    np.testing.assert_allclose(batch.reference_logprobs_N[batch.mask_N > 0], -1.5)


def test_an_adaptive_coefficient_moves_once_per_step_and_is_in_the_state():
    controller = {"kind": "adaptive", "target": 0.5, "horizon": 7.0}
    it = Setup(kl={"coefficient": 0.1, "controller": controller}, minibatches=2)
    _, first = it.step(GROUPS)
    _, second = it.step(GROUPS, step=2)
    # 0.5 nats per token are 1 per response, twice the target: up by the largest error, 0.2, for a whole horizon.
    assert (first["kl_coefficient"], second["kl_coefficient"]) == pytest.approx((0.1, 0.12))
    assert [shard.kl_coefficient for shard in it.policy.shards] == pytest.approx([0.1, 0.1, 0.12, 0.12])
    assert it.trainer.kl.state() == {"coefficient": pytest.approx(0.144)}
    other = Setup(kl={"coefficient": 0.1, "controller": controller})
    other.trainer.kl.load(it.trainer.kl.state())
    assert other.step(GROUPS)[1]["kl_coefficient"] == pytest.approx(0.144)


@pytest.mark.parametrize("name", ["grpo", "ppo", "gspo", "rloo", "reinforce++"])
def test_a_step_whose_rewards_all_failed_trains_on_nothing(name):
    it = Setup(name)
    batch, metrics = it.step([group(None, None)] * 2)
    for column in ("mask_N", "advantages_N", "weights_N"):
        assert not getattr(batch, column).any()
    assert batch.returns_N is None or not batch.returns_N.any()
    assert math.isnan(metrics["reward_shaped"]) and metrics["advantage_std"] == 0.0


def test_masked_responses_keep_their_place_and_leave_the_baseline():
    cut = replace(GROUPS[0], trajectories=tuple(
        replace(t, finish_reason=FinishReason.LENGTH) if i else t for i, t in enumerate(GROUPS[0].trajectories)
    ))  # fmt: skip
    it = Setup(shaping=[{"kind": "mask_truncated"}])
    batch, _ = it.trainer.batch([cut, GROUPS[2]])
    assert batch.mask_N.tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1]
    assert not batch.advantages_N[:8].any() and batch.advantages_N[10] < 0


class TestDynamicSampling:
    def test_what_is_flat(self):
        """0.1 + 0.2 is 0.3 but for rounding, by which no group is told apart."""
        rewards = [(1, 1), (1, 0), (1, None), (None, None), (1,), (0.1 + 0.2, 0.3), (None, 2, 1)]
        assert flat([group(*r) for r in rewards]).tolist() == [True, False, True, True, True, True, False]
        assert flat([]).tolist() == []

    def sampled(self, *rounds):
        """Of a sampler that gives these groups, round by round."""
        notes, left = [], list(rounds)

        def sample(count):
            assert len(left[0]) == count
            notes.append(f"sample {count}")
            return left.pop(0)

        return notes, sample, lambda ids, reason: notes.append(f"drop {' '.join(ids)}")

    def test_flat_groups_are_replaced_until_none_is_left(self):
        a, b, c, d = (group(*r, group_id=i) for i, r in (("a", (1, 1)), ("b", (1, 0)), ("c", (0, 0)), ("d", (0, 1))))
        notes, sample, drop = self.sampled([c], [d])
        kept, dropped = replace_flat([a, b], 5, drop, sample)
        assert [g.group_id for g in kept] == ["b", "d"] and [g.group_id for g in dropped] == ["a", "c"]
        assert notes == ["drop a", "sample 1", "drop c", "sample 1"]

    def test_those_of_the_last_round_stay(self):
        a, b = group(1, 1, group_id="a"), group(0, 0, group_id="b")
        notes, sample, drop = self.sampled([b])
        kept, dropped = replace_flat([a], 1, drop, sample)
        assert (kept, dropped, notes) == ([b], [a], ["drop a", "sample 1"])

    def test_without_rounds_nothing_happens(self):
        kept, dropped = replace_flat([group(1, 1)], 0, None, None)
        assert len(kept) == 1 and not dropped

    def test_dropped_groups_count_in_what_the_samples_look_like(self):
        metrics = sample_metrics([group(1, 0)], [group(0, 0)])
        assert (metrics["reward"], metrics["groups_dropped"], metrics["groups_without_signal"]) == (0.25, 1.0, 0.5)
