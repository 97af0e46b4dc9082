"""Factors for data of another policy: by hand and by identity."""

import math

import pytest
import torch

from rlpipe.algorithms.corrections import (
    icepop_mask,
    importance_weights,
    sequence_mask,
    truncated_importance_weights,
    worst_token_mask,
)

MASK = torch.tensor([[1.0, 1.0, 1.0, 0.0]])


def expect(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)


def from_ratios(ratios):
    behaviour = torch.full_like(torch.tensor(ratios), -1.5)
    return behaviour + torch.tensor(ratios).log(), behaviour


def test_truncated_importance_weights_values():
    factors, cut = truncated_importance_weights(*from_ratios([[0.5, 1.0, 3.0, 9.0]]), MASK, cap=2.0)
    expect(factors, [[0.5, 1.0, 2.0, 0.0]])
    assert cut == 1.0


def test_icepop_values():
    factors, cut = icepop_mask(*from_ratios([[0.5, 1.0, 3.0, 9.0]]), MASK, low=0.6, high=4.0)
    expect(factors, [[0.0, 1.0, 3.0, 0.0]])
    assert cut == 1.0


RATIOS = [[4.0, 1.0, 9.0], [0.5, 2.0, 9.0], [1.0, 1.0, 9.0]]
ROWS = torch.tensor([[1.0, 1.0, 0.0]] * 3)


@pytest.mark.parametrize(
    ("low", "high", "kept"),
    [(0.9, 1.1, [0.0, 1.0, 1.0]), (0.9, 2.1, [1.0, 1.0, 1.0]), (1.9, 2.1, [1.0, 0.0, 0.0])],
)
def test_sequence_mask_values(low, high, kept):
    """Geometric means 2, 1 and 1."""
    factors, cut = sequence_mask(*from_ratios(RATIOS), ROWS, low, high)
    expect(factors, [[k, k, 0.0] for k in kept])
    assert cut == 2.0 * kept.count(0.0)


@pytest.mark.parametrize(
    ("low", "high", "kept"),
    [(0.9, 1.1, [0.0, 0.0, 1.0]), (0.4, 3.0, [0.0, 1.0, 1.0]), (0.6, 5.0, [1.0, 0.0, 1.0])],
)
def test_worst_token_mask_values(low, high, kept):
    factors, cut = worst_token_mask(*from_ratios(RATIOS), ROWS, low, high)
    expect(factors, [[k, k, 0.0] for k in kept])
    assert cut == 2.0 * kept.count(0.0)


@pytest.fixture
def pair():
    """Two policies' log-probabilities of a ragged batch, and its mask."""
    logprobs, behaviour = -torch.rand(2, 5, 8, generator=torch.Generator().manual_seed(0))
    return logprobs, behaviour, (torch.arange(8) < torch.tensor([[8], [3], [1], [5], [0]])).float()


def test_without_bounds_the_token_corrections_are_plain_importance_weights(pair):
    logprobs, behaviour, mask = pair
    expected = torch.exp(logprobs - behaviour) * mask
    torch.testing.assert_close(importance_weights(*pair)[0], expected)
    for factors, cut in (truncated_importance_weights(*pair, math.inf), icepop_mask(*pair, 0.0, math.inf)):
        torch.testing.assert_close(factors, expected)
        assert cut == 0.0


@pytest.mark.parametrize("function", [sequence_mask, worst_token_mask])
def test_without_bounds_no_sequence_is_left_out(function, pair):
    factors, cut = function(*pair, 0.0, math.inf)
    assert torch.equal(factors, pair[2]) and cut == 0.0


def test_a_policy_compared_with_itself_needs_no_correction(pair):
    logprobs, _, mask = pair
    for factors, cut in (
        truncated_importance_weights(logprobs, logprobs, mask, 1.0),
        icepop_mask(logprobs, logprobs, mask, 1.0, 1.0),
        sequence_mask(logprobs, logprobs, mask, 1.0, 1.0),
        worst_token_mask(logprobs, logprobs, mask, 1.0, 1.0),
    ):
        assert torch.equal(factors, mask) and cut == 0.0


def test_sequence_masks_of_single_tokens_keep_what_icepop_keeps(pair):
    one = [values[:, :1] for values in pair]
    kept = icepop_mask(*one, 0.9, 1.2)[0] > 0
    assert 0 < kept.sum() < 4
    for function in (sequence_mask, worst_token_mask):
        assert torch.equal(function(*one, 0.9, 1.2)[0] > 0, kept)


def test_the_worst_token_is_stricter_than_the_mean(pair):
    assert (worst_token_mask(*pair, 0.8, 1.3)[0] <= sequence_mask(*pair, 0.8, 1.3)[0]).all()


def test_a_ratio_that_overflows_is_cut():
    far = torch.tensor([[0.0]]), torch.tensor([[-1000.0]]), torch.ones(1, 1)
    expect(truncated_importance_weights(*far, cap=2.0)[0], [[2.0]])
    for function in (icepop_mask, sequence_mask, worst_token_mask):
        factors, cut = function(*far, 0.5, 2.0)
        assert factors == 0.0 and cut == 1.0


def test_factors_carry_no_gradient(pair):
    logprobs, behaviour, mask = pair
    logprobs.requires_grad_()
    bounds = (0.9, 1.1)
    assert not truncated_importance_weights(logprobs, behaviour, mask, 2.0)[0].requires_grad
    for function in (icepop_mask, sequence_mask, worst_token_mask):
        assert not function(logprobs, behaviour, mask, *bounds)[0].requires_grad


def test_cuts_add_up_over_micro_batches(pair):
    parts = [[values[rows] for values in pair] for rows in ([0, 3], [4, 2, 1])]
    for function in (icepop_mask, sequence_mask, worst_token_mask):
        assert function(*pair, 0.95, 1.05)[1] == sum(function(*part, 0.95, 1.05)[1] for part in parts)
