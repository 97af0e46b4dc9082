"""Draws depend on seed and position alone, and follow the distribution."""

import pytest
import torch

from rlpipe.rollout.sampling import as_int64, draw, is_stop, uniform


def test_uniform_is_splitmix64():
    """Expected: the reference implementation's first outputs for seed 1234567, its upper 48 bits."""
    reference = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    seed = torch.tensor([1234567])
    for position, value in enumerate(reference):
        assert uniform(seed, position).item() == (value >> 16) / 2**48


def test_uniform_is_uniform_and_uncorrelated():
    u = torch.stack([uniform(torch.arange(2000), position) for position in range(50)])
    assert u.min() >= 0 and u.max() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=0.005)
    assert u.var().item() == pytest.approx(1 / 12, abs=0.002)
    assert torch.corrcoef(u.flatten().unfold(0, 2, 2).T)[0, 1].abs() < 0.02
    assert torch.corrcoef(u[:2])[0, 1].abs() < 0.1


def test_seeds_of_any_size_fold_into_int64():
    assert [as_int64(s) for s in (0, 5, 2**63 - 1, 2**63, 2**64 + 3, -1)] == [0, 5, 2**63 - 1, -(2**63), 3, -1]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_draws_follow_the_tempered_distribution(temperature):
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, -float("inf")])
    rows = 40_000
    tokens, logprobs = draw(logits.expand(rows, -1), torch.full((rows,), temperature), torch.arange(rows), 3)
    expected = (logits / temperature).softmax(-1)
    torch.testing.assert_close(tokens.bincount(minlength=5) / rows, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(logprobs, expected.log()[tokens])


def test_temperature_0_takes_the_likeliest_beside_rows_that_sample():
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]])
    tokens, logprobs = draw(logits, torch.tensor([0.0, 1.0]), torch.tensor([0, 0]), 0)
    assert tokens[0] == 1
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0])


def test_rows_stop_at_their_own_tokens():
    stops = torch.tensor([[7, -1], [7, 9], [3, -1]])
    assert is_stop(torch.tensor([7, 9, 7]), stops).tolist() == [True, True, False]
