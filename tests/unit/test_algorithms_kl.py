"""The KL penalty in the reward, and what sets its coefficient."""

import math

import pytest
import torch

from rlpipe.algorithms.gae import discounted_returns
from rlpipe.algorithms.kl import KL_ESTIMATORS
from rlpipe.algorithms.kl_controller import AdaptiveKl, FixedKl
from rlpipe.algorithms.kl_in_reward import kl_in_reward, kl_penalty

NAN = math.nan


def expect(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [[0.0, -0.05, 2.1, 0.0], [0.0, 0.0, 0.0, 0.0]]),
        ("k2", [[0.0, -0.0125, 1.95, 0.0], [0.0, 0.0, 0.0, 0.0]]),
        ("k3", [[0.0, -0.0106531, 1.9281718, 0.0], [0.0, 0.0, 0.0, 0.0]]),
    ],
)
def test_kl_in_reward_values(estimator, expected):
    """log p - log q is 0.5 and -1; the second sequence's reward failed."""
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    penalty = kl_penalty(
        torch.tensor([[9.0, -1.0, -2.0, NAN]] * 2),
        torch.tensor([[NAN, -1.5, -1.0, 9.0]] * 2),
        mask,
        coefficient=0.1,
        estimator=estimator,
    )
    expect(kl_in_reward(torch.tensor([2.0, NAN]), penalty, mask), expected)


def test_the_reward_stands_on_the_last_policy_token():
    mask = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    actual = kl_in_reward(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, 3), mask)
    expect(actual, [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_the_undiscounted_return_is_the_reward_less_the_kl_of_the_sequence(estimator):
    generator = torch.Generator().manual_seed(0)
    logprobs, reference = -torch.rand(2, 4, 6, generator=generator)
    rewards, mask = torch.randn(4, generator=generator), torch.ones(4, 6)
    tokens = kl_in_reward(rewards, kl_penalty(logprobs, reference, mask, 0.3, estimator), mask)
    expected = rewards - 0.3 * KL_ESTIMATORS[estimator](logprobs, reference).sum(-1)
    torch.testing.assert_close(discounted_returns(tokens, mask, 1.0)[:, 0], expected)


def test_fixed_kl_stays():
    controller = FixedKl(0.05)
    controller.update(kl=100.0, sequences=1000)
    controller.load(controller.state())
    assert controller.coefficient == 0.05


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(12.0, 0.204), (6.6, 0.202), (6.0, 0.2), (5.4, 0.198), (0.0, 0.196), (-3.0, 0.196)],
)
def test_adaptive_kl_values(kl, expected):
    """K = 100 / 1000; the error is clipped to 0.2 on either side, and at the target nothing happens."""
    controller = AdaptiveKl(0.2, target=6.0, horizon=1000)
    controller.update(kl, sequences=100)
    assert controller.coefficient == pytest.approx(expected)


def test_adaptive_kl_at_its_target_leaves_the_coefficient_exactly():
    controller = AdaptiveKl(0.123, target=0.7, horizon=10)
    controller.update(0.7, sequences=5)
    assert controller.coefficient == 0.123


def test_adaptive_kl_never_turns_negative():
    controller = AdaptiveKl(0.2, target=6.0, horizon=10)
    controller.update(0.0, sequences=1000)
    assert controller.coefficient == pytest.approx(0.16)


def test_adaptive_kl_goes_on_from_its_state():
    first, second = AdaptiveKl(0.2, 6.0, 1000), AdaptiveKl(0.2, 6.0, 1000)
    first.update(12.0, 100)
    second.load(first.state())
    for controller in (first, second):
        controller.update(3.0, 64)
    assert first.coefficient == second.coefficient != 0.2


def test_adaptive_kl_of_no_sequences_changes_nothing():
    controller = AdaptiveKl(0.2, 6.0, 1000)
    controller.update(NAN, sequences=0)
    assert controller.coefficient == 0.2


@pytest.mark.parametrize("kl", [NAN, math.inf])
def test_adaptive_kl_refuses_a_kl_that_is_none(kl):
    with pytest.raises(ValueError, match="log-probabilities"):
        AdaptiveKl(0.2, 6.0, 1000).update(kl, sequences=8)


@pytest.mark.parametrize(("target", "horizon"), [(0.0, 10.0), (6.0, 0.0)])
def test_adaptive_kl_needs_target_and_horizon(target, horizon):
    with pytest.raises(ValueError, match="above 0"):
        AdaptiveKl(0.2, target, horizon)
