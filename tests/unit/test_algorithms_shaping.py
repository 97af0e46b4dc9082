"""What a reward goes through before it becomes an advantage: by hand, by identity, and beside TRL."""

import math

import pytest
import torch

from rlpipe.algorithms.clip_rewards import clip_rewards
from rlpipe.algorithms.overlong import soft_overlong_penalty, truncation_penalty, without_truncated


def test_soft_overlong_penalty_values():
    lengths = torch.tensor([0, 80, 85, 90, 100, 101, 500])
    expected = [0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0]
    assert soft_overlong_penalty(lengths, max_length=100, buffer=20).tolist() == expected


def test_soft_overlong_penalty_without_buffer_is_a_step():
    assert soft_overlong_penalty(torch.tensor([99, 100, 101]), 100, 0).tolist() == [0.0, 0.0, -1.0]


@pytest.mark.parametrize("buffer", [0, 1, 7, 20])
def test_soft_overlong_penalty_equals_trl(buffer):
    theirs = pytest.importorskip("trl.rewards").get_soft_overlong_punishment(20, buffer)
    ours = soft_overlong_penalty(torch.arange(30), 20, buffer)
    torch.testing.assert_close(ours, torch.tensor(theirs([[0] * length for length in range(30)])))


def test_truncation_penalty_values():
    actual = truncation_penalty(torch.tensor([1.0, 1.0, -1.0]), torch.tensor([False, True, True]), penalty=0.5)
    assert actual.tolist() == [1.0, 0.5, -1.5]


def test_without_penalty_or_truncation_the_reward_stays():
    rewards = torch.tensor([0.3, -2.0])
    assert torch.equal(truncation_penalty(rewards, torch.ones(2).bool(), 0.0), rewards)
    assert torch.equal(truncation_penalty(rewards, torch.zeros(2).bool(), 0.7), rewards)


def test_without_truncated():
    valid, truncated = torch.tensor([True, True, False, False]), torch.tensor([False, True, False, True])
    assert without_truncated(valid, truncated).tolist() == [True, False, False, False]


def test_clip_rewards_values():
    assert clip_rewards(torch.tensor([-7.0, 0.5, 7.0]), -1.0, 2.0).tolist() == [-1.0, 0.5, 2.0]


def test_clip_rewards_without_bounds_changes_nothing():
    rewards = torch.tensor([-7.0, 0.5, 7.0])
    assert torch.equal(clip_rewards(rewards, -math.inf, math.inf), rewards)
