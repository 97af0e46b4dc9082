"""Mixing by weights: shares, what is repeated, and what bounds the length."""

from collections import Counter

import pytest

from rlpipe.data.mixture import mixed


def test_shares_are_kept_and_the_larger_part_is_seen_whole():
    big, small = [f"b{i}" for i in range(90)], [f"s{i}" for i in range(10)]
    found = Counter(mixed([big, small], [3.0, 1.0], None, seed=0))
    assert all(found[item] == 1 for item in big)  # 90 of 120
    assert sorted(found[item] for item in small) == [3] * 10  # 30 of 120


def test_no_more_than_is_needed():
    found = mixed([range(1000), range(1000, 2000)], [0.9, 0.1], 50, seed=0)
    assert len(set(found)) == 50
    assert sum(item >= 1000 for item in found) == 5
    assert found != sorted(found)


def test_the_seed_decides():
    parts, weights = [range(20), range(20, 40)], [1, 1]
    assert mixed(parts, weights, None, 1) == mixed(parts, weights, None, 1) != mixed(parts, weights, None, 2)


@pytest.mark.parametrize("weights", [[1, 1], [0.5, 0.5], [7, 7]])
def test_weights_have_no_unit(weights):
    assert Counter(mixed(["a", "b"], weights, None, 0)) == {"a": 1, "b": 1}
