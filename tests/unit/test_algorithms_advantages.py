"""Group advantages, by hand, by identity, and beside TRL's."""

import math

import pytest
import torch

from rlpipe.algorithms.group_advantages import group_advantages

NAN = math.nan


def advantages(rewards, groups, valid=None, scale_by_std=True):
    valid = [True] * len(rewards) if valid is None else valid
    return group_advantages(torch.tensor(rewards), torch.tensor(groups), torch.tensor(valid), scale_by_std)


def expect(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)


def test_two_groups_in_mixed_order():
    # Group 7: mean 0.5, std sqrt(1/3). Group 3: mean 3, std sqrt(2).
    actual = advantages([1.0, 2.0, 0.0, 0.0, 4.0, 1.0], [7, 3, 7, 7, 3, 7])
    expect(actual, [0.8658758, -0.7070568, -0.8658758, -0.8658758, 0.7070568, 0.8658758])


def test_without_std_it_is_the_distance_from_the_mean():
    expect(advantages([1.0, 0.0, 0.0, 3.0], [0, 0, 0, 0], scale_by_std=False), [0.0, -1.0, -1.0, 2.0])


def test_a_failed_reward_is_in_no_baseline_and_gets_zero():
    # Valid: 1, 0, 3; mean 4/3, std 1.5275252.
    actual = advantages([1.0, NAN, 0.0, 3.0], [0, 0, 0, 0], [True, False, True, True])
    expect(actual, [-0.2182037, 0.0, -0.8728148, 1.0910185])


@pytest.mark.parametrize(
    ("rewards", "valid"),
    [
        ([NAN, NAN, NAN], [False, False, False]),
        ([NAN, 5.0, NAN], [False, True, False]),
        ([5.0, 5.0, 5.0], [True, True, True]),
        ([0.1, 0.1, 0.1], [True, True, True]),  # its mean is not exactly 0.1
        ([-1e6 / 3] * 3, [True, True, True]),
        ([5.0, NAN, 5.0], [True, False, True]),
    ],
)
@pytest.mark.parametrize("scale_by_std", [True, False])
def test_no_signal_is_zero(rewards, valid, scale_by_std):
    expect(advantages(rewards, [0, 0, 0], valid, scale_by_std), [0.0, 0.0, 0.0])


def test_empty_batch():
    empty = torch.zeros(0)
    assert group_advantages(empty, empty.long(), empty.bool(), True).shape == (0,)


def test_unscaled_equals_leave_one_out_up_to_a_factor():
    """RLOO's baseline is the mean of the others: r_i - mean_{j != i} = n / (n - 1) * (r_i - mean)."""
    rewards = torch.tensor([0.3, -1.0, 2.0, 0.7, 0.1])
    n = len(rewards)
    leave_one_out = rewards - (rewards.sum() - rewards) / (n - 1)
    actual = group_advantages(rewards, torch.zeros(n, dtype=torch.long), torch.ones(n).bool(), scale_by_std=False)
    torch.testing.assert_close(actual * n / (n - 1), leave_one_out)


def test_equals_trl():
    """The lines of GRPOTrainer._generate_and_score_completions for scale_rewards="group", NaN for a failed reward."""
    nanstd = pytest.importorskip("trl.trainer.utils").nanstd
    generator = torch.Generator().manual_seed(0)
    rewards_GK = torch.randn(6, 8, generator=generator)
    rewards_GK[torch.rand(6, 8, generator=generator) < 0.2] = NAN
    mean, std = rewards_GK.nanmean(1, keepdim=True), nanstd(rewards_GK, dim=1, keepdim=True)
    theirs = ((rewards_GK - mean) / (std + 1e-4)).nan_to_num(0.0).flatten()
    groups_B = torch.arange(6).repeat_interleave(8)
    ours = group_advantages(rewards_GK.flatten(), groups_B, ~rewards_GK.flatten().isnan(), scale_by_std=True)
    torch.testing.assert_close(ours, theirs)
