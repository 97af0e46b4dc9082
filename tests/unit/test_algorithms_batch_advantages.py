"""RLOO, REINFORCE++ and its baseline form, whitening, and which groups have a signal."""

import math

import pytest
import torch

from rlpipe.algorithms.gae import discounted_returns
from rlpipe.algorithms.group_advantages import group_advantages
from rlpipe.algorithms.groups import group_statistics, has_signal
from rlpipe.algorithms.reinforce_plus_plus import reinforce_plus_plus, reinforce_plus_plus_baseline
from rlpipe.algorithms.rloo import rloo
from rlpipe.algorithms.whiten import whiten

NAN = math.nan
ON_GROUPS = [rloo, reinforce_plus_plus_baseline]


def expect(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)


def on(function, rewards, groups, valid=None):
    valid = [True] * len(rewards) if valid is None else valid
    return function(torch.tensor(rewards), torch.tensor(groups), torch.tensor(valid))


def test_rloo_values():
    """Group 4: 1, 2, 6 and a failure; group 1: 0, 4."""
    actual = on(rloo, [1.0, 0.0, NAN, 2.0, 4.0, 6.0], [4, 1, 4, 4, 1, 4], [True, True, False, True, True, True])
    expect(actual, [-3.0, -4.0, 0.0, -1.5, 4.0, 4.5])


def test_grpo_without_std_is_half_of_rloo_in_a_group_of_two():
    rewards, groups = torch.randn(10, generator=torch.Generator().manual_seed(0)), torch.arange(5).repeat(2)
    valid = torch.ones(10).bool()
    torch.testing.assert_close(group_advantages(rewards, groups, valid, False), rloo(rewards, groups, valid) / 2)


def test_rloo_is_the_distance_from_the_mean_of_the_others():
    rewards, groups = torch.randn(12, generator=torch.Generator().manual_seed(0)), torch.arange(3).repeat(4)
    others = [rewards[[j for j in range(12) if groups[j] == groups[i] and j != i]].mean() for i in range(12)]
    torch.testing.assert_close(rloo(rewards, groups, torch.ones(12).bool()), rewards - torch.stack(others))


def test_reinforce_plus_plus_baseline_values():
    """Distances from the group mean 0.5, -0.5, 1, -1 and 0, with sample variance 2.5 / 4."""
    actual = on(
        reinforce_plus_plus_baseline,
        [1.0, 0.0, 4.0, 2.0, NAN, 5.0],
        [0, 0, 1, 1, 1, 2],
        [True, True, True, True, False, True],
    )
    expect(actual, [0.6324555, -0.6324555, 1.2649111, -1.2649111, 0.0, 0.0])


def test_reinforce_plus_plus_baseline_of_one_group_is_grpo():
    """One group is the whole batch; GRPO's epsilon aside."""
    rewards, groups, valid = torch.tensor([1.0, 0.0, 3.0]), torch.zeros(3).long(), torch.ones(3).bool()
    grpo = group_advantages(rewards, groups, valid, scale_by_std=True, epsilon=0.0)
    torch.testing.assert_close(reinforce_plus_plus_baseline(rewards, groups, valid), grpo)


@pytest.mark.parametrize("function", ON_GROUPS)
@pytest.mark.parametrize(
    ("rewards", "valid"),
    [
        ([NAN, NAN, NAN], [False, False, False]),
        ([NAN, 5.0, NAN], [False, True, False]),
        ([0.1, 0.1, 0.1], [True, True, True]),  # its mean is not exactly 0.1
        ([-1e6 / 3] * 3, [True, True, True]),
    ],
)
def test_no_signal_is_zero(function, rewards, valid):
    """Alone, and beside a group that has one."""
    assert not on(function, rewards, [0, 0, 0], valid).any()
    beside = on(function, [*rewards, 0.1, 0.7, 0.3], [0, 0, 0, 1, 1, 1], [*valid, True, True, True])
    assert not beside[:3].any() and beside[3:].all()


def test_has_signal():
    rewards = [1.0, 1.0, NAN, 2.0, 3.0, NAN, 5.0, NAN]
    valid = [True, True, False, True, True, False, True, False]
    assert on(has_signal, rewards, [0, 0, 0, 1, 1, 1, 2, 2], valid).tolist() == [False] * 3 + [True] * 3 + [False] * 2


def test_has_signal_is_where_some_advantage_is_not_zero():
    generator = torch.Generator().manual_seed(0)
    rewards, groups = torch.randint(0, 2, (60,), generator=generator).float(), torch.arange(20).repeat(3)
    valid = torch.rand(60, generator=generator) < 0.8
    signal = has_signal(rewards, groups, valid)
    advantages = group_advantages(rewards, groups, valid, scale_by_std=True)
    assert set(groups[signal].tolist()) == set(groups[advantages != 0].tolist()) and 0 < signal.sum() < 60


def test_group_statistics_values():
    group = on(group_statistics, [1.0, 5.0, 3.0, NAN], [0, 1, 0, 0], [True, True, True, False])
    expect(group.count_B, [2.0, 1.0, 2.0, 2.0])
    expect(group.mean_B, [2.0, 5.0, 2.0, 2.0])
    expect(group.std_B, [math.sqrt(2), 0.0, math.sqrt(2), math.sqrt(2)])
    expect(group.centred_B, [-1.0, 0.0, 1.0, 0.0])
    assert group.signal_B.tolist() == [True, False, True, True]


def test_reinforce_plus_plus_values():
    """Returns 1, 1, 2 and, discounted by half, 0.5, 1, 2."""
    rewards, mask = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    expect(reinforce_plus_plus(rewards, mask), [[-0.5773503, -0.5773503], [1.1547005, 0.0]])
    expect(reinforce_plus_plus(rewards, mask, gamma=0.5), [[-0.8728716, -0.2182179], [1.0910895, 0.0]])


def test_reinforce_plus_plus_is_the_return_in_other_units():
    """Mean 0 and variance 1 over the policy's tokens, and an affine map of the returns."""
    rewards = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(6) < torch.tensor([[6], [2], [4], [0]])).float()
    advantages = reinforce_plus_plus(rewards * mask, mask, 0.9)[mask > 0]
    returns = discounted_returns(rewards * mask, mask, 0.9)[mask > 0]
    torch.testing.assert_close(advantages * returns.std() + returns.mean(), returns)


@pytest.mark.parametrize(("shift_mean", "expected"), [(True, [-1.0, 0.0, 1.0, 0.0]), (False, [3.0, 4.0, 5.0, 0.0])])
def test_whiten_values(shift_mean, expected):
    actual = whiten(torch.tensor([2.0, 4.0, 6.0, NAN]), torch.tensor([1.0, 1.0, 1.0, 0.0]), shift_mean)
    expect(actual, expected)


@pytest.mark.parametrize("values", [[0.1] * 10, [1e6 / 3] * 10, [3.0]])
def test_whiten_leaves_equal_values_alone(values):
    """No spread, nothing to divide by: the deviation is 0, and the mean stays or goes."""
    mask = torch.ones(len(values)).bool()
    assert not whiten(torch.tensor(values), mask).any()
    torch.testing.assert_close(whiten(torch.tensor(values), mask, shift_mean=False), torch.tensor(values))


def test_whiten_twice_is_whiten():
    values, mask = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.ones(4, 5)
    torch.testing.assert_close(whiten(whiten(values, mask), mask), whiten(values, mask))


def test_whiten_has_trls_standard_deviation():
    """TRL 1.16 has no PPO of its own any more; what is left of its normalisation is nanstd, NaN for a failure."""
    nanstd = pytest.importorskip("trl.trainer.utils").nanstd
    values = torch.randn(40, generator=torch.Generator().manual_seed(0))
    values[::7] = NAN
    theirs = ((values - values.nanmean()) / nanstd(values)).nan_to_num(0.0)
    torch.testing.assert_close(whiten(values, ~values.isnan()), theirs)
