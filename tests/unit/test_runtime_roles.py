"""Where a role's processes sit, and how many threads each gets."""

import os

import pytest

from rlpipe.runtime.roles import Seat, seats_at
from rlpipe.runtime.threads import set_threads, threads_of


def test_seats_are_counted_by_node_and_meet_where_the_first_is():
    assert seats_at([("a", "10.0.0.1", 5000), ("b", "10.0.0.2", 6000), ("a", "10.0.0.1", 7000)]) == [
        Seat(index=0, count=3, local_index=0, local_count=2, address="10.0.0.1", port=5000),
        Seat(index=1, count=3, local_index=0, local_count=1, address="10.0.0.1", port=5000),
        Seat(index=2, count=3, local_index=1, local_count=2, address="10.0.0.1", port=5000),
    ]


@pytest.mark.parametrize(("wanted", "sharing", "threads"), [(0, 1, 8), (0, 3, 2), (0, 16, 1), (5, 3, 5)])
def test_processes_share_their_nodes_cores_unless_the_recipe_says_how_many(wanted, sharing, threads, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert threads_of(wanted, sharing) == threads


def test_torch_and_what_asks_the_environment_get_the_same(monkeypatch):
    import torch

    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    set_threads(3, sharing=1)
    assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (3, "3")
    torch.set_num_threads(before)
