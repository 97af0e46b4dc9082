"""PPO clip, KL estimators, aggregation and mismatch: literal values and identities."""

import math

import pytest
import torch

from rlpipe.algorithms.aggregate import masked_sum
from rlpipe.algorithms.kl import KL_ESTIMATORS, k1, k2, k3
from rlpipe.algorithms.mismatch import effective_sample_size, mismatch_sums
from rlpipe.algorithms.ppo_clip import ppo_clip


def expect(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)


RATIOS = [1.5, 0.5, 1.5, 0.5, 1.0, 1.1]
ADVANTAGES = [1.0, 1.0, -1.0, -1.0, 2.0, -3.0]


def test_ppo_clip_values():
    loss, clipped = ppo_clip(torch.tensor(RATIOS).log(), torch.zeros(6), torch.tensor(ADVANTAGES), 0.2, 0.28)
    expect(loss, [-1.28, -0.5, 1.5, 0.8, -2.0, 3.3])
    expect(clipped, [1.0, 0.0, 0.0, 1.0, 0.0, 0.0])


def test_ppo_clip_gradient_is_zero_exactly_where_clipped():
    logprobs = torch.tensor(RATIOS).log().requires_grad_()
    loss, clipped = ppo_clip(logprobs, torch.zeros(6), torch.tensor(ADVANTAGES), 0.2, 0.28)
    loss.sum().backward()
    expect(logprobs.grad, [0.0, -0.5, 1.5, 0.0, -2.0, 3.3])
    assert ((logprobs.grad == 0) == (clipped == 1)).all()


def test_ppo_clip_on_policy_has_the_policy_gradient():
    logprobs = torch.tensor([-1.0, -2.0, -0.1]).requires_grad_()
    advantages = torch.tensor([0.5, -2.0, 0.0])
    loss, clipped = ppo_clip(logprobs, logprobs.detach(), advantages, 0.2, 0.2)
    loss.sum().backward()
    assert torch.equal(logprobs.grad, -advantages)
    assert not clipped.any()


def test_kl_values():
    policy, reference = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    expect(k1(policy, reference), [0.6931472])
    expect(k2(policy, reference), [0.2402265])
    expect(k3(policy, reference), [0.1931472])


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_kl_of_equal_policies_is_zero(name):
    logprobs = torch.tensor([-0.1, -5.0, -50.0])
    assert not KL_ESTIMATORS[name](logprobs, logprobs).any()


@pytest.mark.parametrize("estimator", [k1, k3])
def test_unbiased_estimators_have_the_kl_as_expectation(estimator):
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    exact = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * estimator(p.log(), q.log())).sum(), exact)


@pytest.mark.parametrize(("estimator", "right"), [(k1, False), (k2, True), (k3, False)])
def test_only_k2_has_the_gradient_of_the_kl(estimator, right):
    """As the docstrings say: on samples of p, k1 pulls nowhere, k2 as KL(p || q) does, k3 as KL(q || p) does."""
    logits, q = torch.tensor([0.4, -0.3, 0.1]), torch.tensor([0.2, 0.2, 0.6])

    def gradient(loss_of):
        free = logits.clone().requires_grad_()
        loss_of(free.log_softmax(-1)).backward()
        return free.grad

    exact = gradient(lambda logp: (logp.exp() * (logp - q.log())).sum())
    sampled = gradient(lambda logp: (logp.exp().detach() * estimator(logp, q.log())).sum())
    assert torch.allclose(sampled, exact, atol=1e-6) == right
    if estimator is k1:
        assert sampled.abs().max() < 1e-6


def test_masked_values_do_not_reach_the_sum():
    values = torch.tensor([1.0, math.inf, math.nan], requires_grad=True)
    total = masked_sum(values, torch.tensor([1.0, 0.0, 0.0]))
    total.backward()
    assert total == 1.0
    expect(values.grad, [1.0, 0.0, 0.0])


def test_empty_and_fully_masked_are_zero():
    assert masked_sum(torch.zeros(0), torch.zeros(0)) == 0.0


def test_mismatch_values():
    logprobs, behaviour = torch.tensor([[0.5, 0.5, 0.9]]).log(), torch.tensor([[0.25, 0.5, 0.1]]).log()
    sums = mismatch_sums(logprobs, behaviour, torch.tensor([[1.0, 1.0, 0.0]]))
    expect(sums["mismatch/abs"], 0.6931472)
    expect(sums["mismatch/kl"], 0.3068528)
    expect(sums["mismatch/weight"], 3.0)
    expect(sums["mismatch/weight_sq"], 5.0)
    assert effective_sample_size(3.0 / 2, 5.0 / 2) == pytest.approx(0.9)


def test_effective_sample_size_of_equal_weights_and_of_nothing():
    assert effective_sample_size(0.7, 0.7**2) == pytest.approx(1.0)
    assert effective_sample_size(0.0, 0.0) == 0.0
