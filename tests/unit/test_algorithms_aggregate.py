"""The weight of each token in a step's loss: by hand, by identity, under every split, and beside TRL's loss types."""

import math
from typing import get_args

import pytest
import torch
from trl_grpo import random_inputs, trl_loss

from rlpipe.algorithms.aggregate import Aggregation, keep, masked_sum, token_weights
from rlpipe.algorithms.ppo_clip import ppo_clip

KINDS = get_args(Aggregation)


def expect(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=0)


def weights_of(kind, mask_BT, constant=10.0):
    """The weights of a padded batch, flattened without its padding and put back, as a step does it."""
    sequence_of_BT = torch.arange(len(mask_BT))[:, None].expand_as(mask_BT)
    return token_weights(kind, mask_BT.flatten(), sequence_of_BT.flatten(), constant).view_as(mask_BT)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("token_mean", [0.0, 1 / 3, 1 / 3, 1 / 3, 0.0, 0.0]),
        ("sequence_mean", [0.0, 0.25, 0.25, 0.5, 0.0, 0.0]),
        ("sequence_mean_token_sum", [0.0, 0.5, 0.5, 0.5, 0.0, 0.0]),
        ("constant", [0.0, 0.125, 0.125, 0.125, 0.0, 0.0]),
    ],
)
def test_values(kind, expected):
    """Sequence 5 has two response tokens, sequence 2 one, and sequence 9, whose reward failed, is in no denominator."""
    mask, sequences = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 0.0]), torch.tensor([5, 5, 5, 2, 2, 9])
    expect(token_weights(kind, mask, sequences, constant=4.0), expected)


def test_kinds_agree_on_equal_lengths():
    """Up to the length, which the two that sum over tokens leave in (`constant` divides by its own)."""
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 5 + [[0.0, 1.0, 1.0, 1.0]])
    expected = weights_of("token_mean", mask)
    torch.testing.assert_close(weights_of("sequence_mean", mask), expected)
    torch.testing.assert_close(weights_of("constant", mask, constant=3.0), expected)
    torch.testing.assert_close(weights_of("sequence_mean_token_sum", mask), 3 * expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_does_not_depend_on_the_split(kind):
    """Micro-batches of other sizes and orders, padded to other widths, add up to the same loss and gradient."""
    inputs = random_inputs()
    weights = weights_of(kind, inputs["mask_BT"])

    def loss_of(rows, width):
        columns = slice(0, width)
        names = ("logprobs_BT", "old_logprobs_BT", "advantages_BT")
        loss, _ = ppo_clip(*(inputs[name][rows, columns] for name in names), 0.2, 0.28)
        return masked_sum(loss, weights[rows, columns])

    longest = inputs["mask_BT"].sum(-1).int().tolist()
    whole = loss_of(list(range(6)), 10)
    split = sum(loss_of(rows, max(longest[r] for r in rows)) for rows in ([0], [3, 1], [5, 4, 2]))
    torch.testing.assert_close(split, whole)
    gradients = [torch.autograd.grad(loss, inputs["logprobs_BT"])[0] for loss in (split, whole)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 3)])
def test_nothing_to_train_on_weighs_nothing(kind, shape):
    weights = weights_of(kind, torch.zeros(shape))
    assert weights.shape == shape and not weights.any()


@pytest.mark.parametrize("constant", [None, 0.0, -1.0])
def test_constant_needs_a_length(constant):
    with pytest.raises(ValueError, match="length above 0"):
        token_weights("constant", torch.ones(2), torch.zeros(2), constant)


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(ValueError, match="sequence_mean_token_sum"):
        token_weights("mean", torch.ones(2), torch.zeros(2))


def test_keep_stops_values_and_gradients():
    values = torch.tensor([2.0, math.nan, math.inf], requires_grad=True)
    kept = keep(values.square(), torch.tensor([1.0, 0.0, 0.0]))
    kept.sum().backward()
    expect(kept, [4.0, 0.0, 0.0])
    assert values.grad[0] == 4.0


@pytest.mark.parametrize(
    ("kind", "loss_type"),
    [
        ("token_mean", "bnpo"),
        ("token_mean", "dapo"),
        ("sequence_mean", "grpo"),
        ("sequence_mean_token_sum", "luspo"),
        ("constant", "dr_grpo"),
    ],
)
def test_equals_trl(kind, loss_type):
    """Every sequence has response tokens here: TRL's means over sequences count the others, too."""
    inputs = random_inputs()
    loss, _ = ppo_clip(*(inputs[n] for n in ("logprobs_BT", "old_logprobs_BT", "advantages_BT")), 0.2, 0.28)
    ours = masked_sum(loss, weights_of(kind, inputs["mask_BT"], constant=10.0))
    theirs, _ = trl_loss(inputs, loss_type=loss_type)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, inputs["logprobs_BT"])[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)
