"""The composed algorithm: what each part changes, that splits and rubbish change nothing, and nothing gives NaN."""

import pytest
import torch
from online_algorithms import MAX_NEW_TOKENS, algorithm, weights_of
from trl_grpo import random_inputs

from rlpipe.algorithms.kl_controller import AdaptiveKl
from rlpipe.algorithms.kl_in_reward import kl_in_reward, kl_penalty
from rlpipe.algorithms.online import OnlineAlgorithm
from rlpipe.algorithms.rloo import rloo
from rlpipe.algorithms.shaping_kinds import Scored
from rlpipe.recipe.algorithm import PRESETS

KL = 0.1
CORRECTIONS = ("tis", "icepop", "sequence_mask", "worst_token", "decoupled")
VARIANTS = [(name, {}) for name in PRESETS]
VARIANTS += [("grpo", {"kl": {"coefficient": KL, "estimator": e}, "entropy_coefficient": 0.01}) for e in ("k2", "k3")]
VARIANTS += [("grpo", {"correction": {"kind": kind}}) for kind in CORRECTIONS]
VARIANTS += [("grpo", {"loss": {"kind": "dual_clip"}}), ("ppo", {"advantage": {"kind": "return", "whiten": True}})]


def loss_of(it: OnlineAlgorithm, inputs, **changes):
    entropy = {"entropy_BT": -inputs["logprobs_BT"]}
    return it.loss(**{"kl_coefficient": KL, **entropy, **inputs, **changes})


def gradient_of(loss, inputs):
    return torch.autograd.grad(loss, inputs["logprobs_BT"])[0]


def step(name, changes):
    it = algorithm(name, **changes)
    inputs = random_inputs()
    return it, inputs | {"weights_BT": weights_of(it, inputs["mask_BT"])}


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_splitting_a_step_changes_neither_loss_nor_gradient_nor_metrics(name, changes):
    it, inputs = step(name, changes)
    whole, sums = loss_of(it, inputs)
    parts = [
        loss_of(it, {key: value[rows] for key, value in inputs.items()})
        for rows in ([0, 4], [3], [], [5, 1, 2])  # two ranks' micro-batches, an empty one among them
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    gradients = gradient_of(sum(loss for loss, _ in parts), inputs), gradient_of(whole, inputs)
    torch.testing.assert_close(*gradients)
    for metric, value in sums.items():
        torch.testing.assert_close(sum(found[metric] for _, found in parts), value, msg=metric)


@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), -1e4, 200.0])
@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_what_is_masked_is_never_read(name, changes, rubbish):
    it, inputs = step(name, changes)
    masked = inputs["mask_BT"] == 0
    dirty = {
        key: value if key in ("mask_BT", "weights_BT") else torch.where(masked, rubbish, value.detach())
        for key, value in inputs.items()
    }
    dirty["logprobs_BT"].requires_grad_()
    (clean_loss, clean_sums), (loss, sums) = loss_of(it, inputs), loss_of(it, dirty)
    assert loss == clean_loss and {k: v.item() for k, v in sums.items()} == {k: v.item() for k, v in clean_sums.items()}
    torch.testing.assert_close(gradient_of(loss, dirty), gradient_of(clean_loss, inputs), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
@pytest.mark.parametrize("gap", [100.0, -100.0])
def test_policies_far_apart_overflow_nothing(name, changes, gap):
    it, inputs = step(name, changes)
    for sign in (0.0, 1.0, -1.0):
        far = inputs["old_logprobs_BT"] + gap * inputs["mask_BT"]
        changed = {"logprobs_BT": far.requires_grad_(), "advantages_BT": torch.full_like(far, sign)}
        loss, _ = loss_of(it, inputs | changed, reference_logprobs_BT=far.detach())
        assert loss.isfinite() and gradient_of(loss, changed).isfinite().all()


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_a_step_in_which_every_reward_failed_gives_zero(name, changes):
    it, inputs = step(name, changes)
    nothing = torch.zeros(6, 10)
    signal = it.signal(
        rewards_B=torch.full((6,), float("nan")), groups_B=torch.arange(6) // 2, valid_B=torch.zeros(6).bool(),
        mask_BT=nothing, kl_coefficient=KL, old_logprobs_BT=nothing, reference_logprobs_BT=nothing, values_BT=nothing,
    )  # fmt: skip
    assert not signal.advantages_BT.any() and not signal.returns_BT.any()
    assert not weights_of(it, nothing).any()
    loss, sums = loss_of(it, inputs, mask_BT=nothing, weights_BT=nothing, advantages_BT=signal.advantages_BT)
    assert loss == 0.0 and not gradient_of(loss, inputs).any() and not any(value != 0.0 for value in sums.values())


class TestSignal:
    mask = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    old = torch.tensor([[0.0, -1.0, -2.0], [0.0, -1.0, 0.0], [0.0, -3.0, -1.0], [0.0, 0.0, 0.0]])
    reference = old - torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 9.0], [0.0, -1.0, 0.0], [5.0, 0.0, 0.0]])
    rewards = torch.tensor([1.0, 0.0, 3.0, float("nan")])
    valid = torch.tensor([True, True, True, False])

    def of(self, it, coefficient=0.5, **changes):
        given = {
            "rewards_B": self.rewards, "groups_B": torch.tensor([0, 0, 0, 0]), "valid_B": self.valid,
            "mask_BT": self.mask, "kl_coefficient": coefficient, "old_logprobs_BT": self.old,
            "reference_logprobs_BT": self.reference,
        }  # fmt: skip
        return it.signal(**(given | changes))

    def test_a_sequence_s_kl_is_taken_from_its_reward(self):
        """As TRL's RLOO: 1 - 0.5 * (1 + 0.5), 0, 3 - 0.5 * -1."""
        expected = rloo(torch.tensor([0.25, 0.0, 3.5, 0.0]), torch.zeros(4).long(), self.valid)
        found = self.of(algorithm("rloo")).advantages_BT
        torch.testing.assert_close(found, expected[:, None] * self.mask)

    def test_a_token_s_kl_is_taken_from_its_own_reward(self):
        plain = {"advantage": {"kind": "return", "gamma": 0.0, "whiten": False}}
        found = self.of(algorithm("ppo", **plain)).advantages_BT
        penalty = kl_penalty(self.old, self.reference, self.mask, 0.5, "k1")
        torch.testing.assert_close(found, kl_in_reward(self.rewards, penalty, self.mask))

    def test_the_critic_s_targets_are_not_whitened(self):
        values = torch.tensor([[0.0, 0.5, 0.5]] * 4)
        signal = self.of(algorithm("ppo", kl={"coefficient": 0.0}, advantage={"lam": 1.0}), values_BT=values)
        torch.testing.assert_close(signal.returns_BT, torch.nan_to_num(self.rewards)[:, None] * self.mask)
        assert signal.advantages_BT[self.mask > 0].mean().abs() < 1e-6

    def test_without_values_gae_says_whom_to_ask(self):
        with pytest.raises(ValueError, match="Critic"):
            self.of(algorithm("ppo"))

    def test_a_missing_reference_or_coefficient_is_an_error(self):
        with pytest.raises(ValueError, match="Reference"):
            self.of(algorithm("rloo"), reference_logprobs_BT=None)
        with pytest.raises(ValueError, match="coefficient came as 0"):
            self.of(algorithm("rloo"), coefficient=0.0)


class TestNeeds:
    @pytest.mark.parametrize(
        ("name", "changes", "reference", "critic", "old"),
        [
            ("grpo", {}, False, False, False),
            ("grpo", {"kl": {"coefficient": KL}}, True, False, False),
            ("grpo", {"correction": {"kind": "tis"}}, False, False, False),
            ("ppo", {}, True, True, True),
            ("ppo", {"kl": {"coefficient": 0.0}}, False, True, False),
            ("rloo", {}, True, False, True),
            ("online_dpo", {}, True, False, True),
        ],
    )
    def test_roles_and_forward_passes(self, name, changes, reference, critic, old):
        it = algorithm(name, **changes)
        assert (it.needs_reference, it.needs_critic, it.needs_old_logprobs(1)) == (reference, critic, old)
        assert it.needs_old_logprobs(2)

    def test_the_controller_is_the_recipe_s(self):
        adaptive = {"kind": "adaptive", "target": 3.0}
        controller = algorithm("ppo", kl={"controller": adaptive}).kl_controller()
        assert isinstance(controller, AdaptiveKl) and controller.coefficient == 0.02
        assert algorithm("ppo").kl_controller().coefficient == 0.02


class TestLoss:
    def test_decoupled_is_decoupled_ppo(self):
        inputs = random_inputs()
        inputs["behaviour_logprobs_BT"] = inputs["old_logprobs_BT"] - 0.3 * inputs["reference_logprobs_BT"]
        loss, sums = loss_of(algorithm("grpo", correction={"kind": "decoupled"}), inputs)
        proximal, advantages = inputs["old_logprobs_BT"], inputs["advantages_BT"]
        ratio = torch.exp(inputs["logprobs_BT"] - proximal)
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        expected = -torch.exp(proximal - inputs["behaviour_logprobs_BT"]) * surrogate
        torch.testing.assert_close(loss, (expected * inputs["weights_BT"])[inputs["mask_BT"] > 0].sum())
        assert sums["correction/cut"] == 0.0

    def test_a_corrected_token_leaves_the_denominator_as_it_is(self):
        inputs = random_inputs()
        off = inputs["old_logprobs_BT"] + 5.0 * (torch.arange(10) % 2)  # every second token is far from the engine's
        loss, sums = loss_of(algorithm("grpo", correction={"kind": "icepop"}), inputs, behaviour_logprobs_BT=off)
        even = (torch.arange(10) % 2 == 0).float()
        same = {"behaviour_logprobs_BT": off, "weights_BT": inputs["weights_BT"] * even}
        torch.testing.assert_close(loss, loss_of(algorithm("grpo"), inputs, **same)[0])
        assert sums["correction/cut"] == (inputs["mask_BT"] * (1 - even)).sum()

    def test_the_entropy_bonus_is_deducted(self):
        inputs = random_inputs()
        entropy = torch.rand(6, 10, generator=torch.Generator().manual_seed(3))
        plain, _ = loss_of(algorithm("grpo"), inputs)
        loss, _ = loss_of(algorithm("grpo", entropy_coefficient=0.5), inputs, entropy_BT=entropy)
        torch.testing.assert_close(loss, plain - 0.5 * (entropy * inputs["weights_BT"]).sum())

    def test_a_kl_in_the_reward_is_measured_but_not_in_the_loss(self):
        inputs = random_inputs()
        changes = {"loss": {"kind": "ppo_clip"}, "aggregation": "token_mean"}
        loss, sums = loss_of(algorithm("rloo", **changes), inputs)
        torch.testing.assert_close(loss, loss_of(algorithm("grpo"), inputs)[0])
        gap = (inputs["logprobs_BT"] - inputs["reference_logprobs_BT"]).detach()
        torch.testing.assert_close(sums["reference_kl"], (gap * inputs["mask_BT"]).sum())

    def test_the_coefficient_is_the_one_that_comes_with_the_step(self):
        it, inputs = algorithm("grpo", kl={"coefficient": 0.1}), random_inputs()
        once, twice = (loss_of(it, inputs, kl_coefficient=k)[0] for k in (0.1, 0.2))
        _, sums = loss_of(it, inputs)
        torch.testing.assert_close(twice - once, 0.1 * sums["reference_kl"] / inputs["mask_BT"].sum())
        with pytest.raises(ValueError, match="came as 0"):
            loss_of(it, inputs, kl_coefficient=0.0)

    def test_an_unknown_kind_names_the_known_ones(self):
        settings = {"advantage": {"kind": "gea"}}
        with pytest.raises(ValueError, match="gae, group"):
            OnlineAlgorithm(settings, MAX_NEW_TOKENS)


class TestShaping:
    scored = Scored(
        rewards_B=torch.tensor([1.0, 1.0, -4.0, 0.0]),
        valid_B=torch.tensor([True, True, True, False]),
        lengths_B=torch.tensor([8, 9, 10, 10]),
        truncated_B=torch.tensor([False, False, True, True]),
    )

    def of(self, *shapings):
        return algorithm("grpo", shaping=list(shapings)).shaped(self.scored)

    def test_nothing_by_default(self):
        assert self.of() is self.scored

    def test_auto_is_a_fifth_of_the_longest(self):
        assert self.of({"kind": "overlong"}).rewards_B.tolist() == [1.0, 0.5, -5.0, -1.0]
        assert self.of({"kind": "overlong", "buffer": 1}).rewards_B.tolist() == [1.0, 1.0, -5.0, -1.0]

    def test_in_the_order_of_the_list(self):
        penalty, clip = {"kind": "truncation_penalty", "penalty": 2.0}, {"kind": "clip", "low": -1.0, "high": 0.5}
        assert self.of(penalty, clip).rewards_B.tolist() == [0.5, 0.5, -1.0, -1.0]
        assert self.of(clip, penalty).rewards_B.tolist() == [0.5, 0.5, -3.0, -2.0]

    def test_truncated_ones_are_left_out(self):
        assert self.of({"kind": "mask_truncated"}).valid_B.tolist() == [True, True, False, False]

    def test_whitened_over_the_valid_ones(self):
        rewards = self.of({"kind": "whiten"}).rewards_B[:3]
        assert rewards.std().item() == pytest.approx(1.0) and rewards.mean().item() == pytest.approx(-2 / 3)
