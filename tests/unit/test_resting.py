"""Memory that is given back and taken again."""

import torch

from rlpipe.training.resting import Resting


def test_it_is_given_back_and_everything_is_where_it_was():
    whole = torch.arange(12.0)
    view, other = whole[4:8], torch.ones(3, dtype=torch.bfloat16)
    rest = Resting([view, whole, other, torch.empty(0)])
    assert whole.untyped_storage().nbytes() == other.untyped_storage().nbytes() == 0
    rest.end()
    assert torch.equal(whole, torch.arange(12.0)) and torch.equal(other, torch.ones(3, dtype=torch.bfloat16))
    view += 1
    assert whole[4] == 5.0, "views that others hold are views still"


def test_it_can_rest_again():
    tensor = torch.arange(3.0)
    for _ in range(2):
        Resting([tensor]).end()
    assert torch.equal(tensor, torch.arange(3.0))
