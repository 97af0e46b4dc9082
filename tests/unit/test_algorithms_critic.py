"""GAE, returns, the value loss and explained variance: by hand and by identity."""

import math

import pytest
import torch

from rlpipe.algorithms.explained_variance import explained_variance, value_sums
from rlpipe.algorithms.gae import discounted_returns, gae
from rlpipe.algorithms.value_loss import value_loss

NAN = math.nan


def expect(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)


def test_gae_values():
    advantages, returns = gae(
        torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 1.0, 1.5]]), torch.ones(1, 3), gamma=0.9, lam=0.5
    )
    expect(advantages, [[2.76125, 3.025, 1.5]])
    expect(returns, [[3.26125, 4.025, 3.0]])


def test_environment_tokens_neither_decay_nor_accumulate():
    """The same episode with a prompt before it, two environment tokens inside it and padding behind it. Of the rewards,
    the prompt's is nobody's, the environment's are those of the policy token before."""
    mask = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]])
    rewards = torch.tensor([[7.0, 0.25, 0.5, 0.25, 2.0, 1.0, 2.0, 0.0]])
    values = torch.tensor([[NAN, 0.5, NAN, 99.0, 1.0, 1.5, math.inf, NAN]])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    expect(advantages, [[0.0, 2.76125, 0.0, 0.0, 3.025, 1.5, 0.0, 0.0]])
    expect(returns, [[0.0, 3.26125, 0.0, 0.0, 4.025, 3.0, 0.0, 0.0]])


@pytest.mark.parametrize("seed", range(3))
def test_gae_of_any_mask_is_that_of_the_policy_tokens_alone(seed):
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 4, 9, generator=generator)
    mask = (torch.rand(4, 9, generator=generator) < 0.5).float()
    advantages, returns = gae(rewards * mask, values, mask, 0.95, 0.7)
    for row, kept in enumerate(mask.bool()):
        alone = gae(rewards[row, kept][None], values[row, kept][None], torch.ones(1, int(kept.sum())), 0.95, 0.7)
        torch.testing.assert_close((advantages[row, kept], returns[row, kept]), (alone[0][0], alone[1][0]))


def test_gae_with_lambda_1_and_no_values_is_the_return():
    rewards = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    advantages, returns = gae(rewards, torch.zeros(3, 7), torch.ones(3, 7), gamma=0.9, lam=1.0)
    expected = torch.stack([sum(0.9 ** (s - t) * rewards[:, s] for s in range(t, 7)) for t in range(7)], dim=1)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected)


def test_gae_with_lambda_1_has_the_return_as_target_whatever_the_values():
    rewards, values = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    _, returns = gae(rewards, values, torch.ones(3, 7), gamma=0.9, lam=1.0)
    torch.testing.assert_close(returns, discounted_returns(rewards, torch.ones(3, 7), 0.9))


def test_gae_with_lambda_0_is_the_one_step_error():
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.0]])
    expect(gae(rewards, values, torch.ones(1, 2), gamma=0.5, lam=0.0)[0], [[1.0, 1.0]])


def test_discounted_returns_values():
    rewards, mask = torch.tensor([[1.0, 0.0, 2.0, 4.0]]), torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    expect(discounted_returns(rewards, mask, gamma=0.5), [[3.0, 0.0, 4.0, 4.0]])


def test_a_perfect_critic_leaves_no_advantage():
    """V = the discounted return: every delta is 0, for any lambda."""
    rewards, mask = torch.tensor([[1.0, 0.0, 2.0, 4.0]]), torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    advantages, returns = gae(rewards, torch.tensor([[3.0, NAN, 4.0, 4.0]]), mask, gamma=0.5, lam=0.3)
    expect(advantages, [[0.0, 0.0, 0.0, 0.0]])
    expect(returns, [[3.0, 0.0, 4.0, 4.0]])


def test_value_loss_values():
    values = torch.tensor([1.0, 3.0, 2.0, 1.0], requires_grad=True)
    old, returns = torch.tensor([0.0, 0.0, 2.0, 0.0]), torch.tensor([2.0, 2.0, 5.0, 0.2])
    loss, clipped = value_loss(values, old, returns, clip=0.5)
    loss.sum().backward()
    expect(loss, [1.125, 1.125, 4.5, 0.32])
    expect(clipped, [1.0, 1.0, 0.0, 0.0])
    expect(values.grad, [0.0, 0.0, -3.0, 0.8])


def test_value_loss_without_clip():
    values = torch.tensor([1.0, 3.0], requires_grad=True)
    loss, clipped = value_loss(values, torch.zeros(2), torch.tensor([2.0, 2.0]), clip=None)
    loss.sum().backward()
    expect(loss, [0.5, 0.5])
    expect(values.grad, [-1.0, 1.0])
    assert not clipped.any()


def test_value_loss_with_an_infinite_clip_is_without_clip():
    values, old, returns = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(value_loss(values, old, returns, math.inf), value_loss(values, old, returns, None))


def means(values, returns, mask):
    sums = value_sums(torch.tensor(values), torch.tensor(returns), torch.tensor(mask))
    return [sums[f"value/{n}"].item() / sum(mask) for n in ("error", "error_sq", "return", "return_sq")]


def test_explained_variance_values():
    """Errors 1, 0, 1 with variance 2/9; returns 2, 2, 5 with variance 2."""
    moments = means([1.0, 2.0, 4.0, NAN], [2.0, 2.0, 5.0, NAN], [1.0, 1.0, 1.0, 0.0])
    assert moments == pytest.approx([2 / 3, 2 / 3, 3.0, 11.0])
    assert explained_variance(*moments) == pytest.approx(8 / 9)


@pytest.mark.parametrize(
    ("values", "expected"), [([2.0, 2.0, 5.0], 1.0), ([1.0, 1.0, 4.0], 1.0), ([7.0, 7.0, 7.0], 0.0)]
)
def test_explained_variance_of_perfect_shifted_and_constant_values(values, expected):
    assert explained_variance(*means(values, [2.0, 2.0, 5.0], [1.0] * 3)) == pytest.approx(expected, abs=1e-6)


def test_explained_variance_of_equal_returns_and_of_nothing():
    assert explained_variance(*means([0.0, 1.0], [0.1, 0.1], [1.0] * 2)) == 0.0
    assert explained_variance(0.0, 0.0, 0.0, 0.0) == 0.0


def test_value_sums_add_up_over_micro_batches():
    values, returns = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 5)
    whole = value_sums(values, returns, mask)
    parts = [value_sums(values[rows], returns[rows], mask[rows]) for rows in ([0], [3, 2, 1])]
    for name, value in whole.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], value)
