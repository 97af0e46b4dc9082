"""Stragglers: engines that are slow beside their peers, not those that have more or fewer responses to write."""

import pytest

from rlpipe.rollout import speed
from rlpipe.rollout.speed import Stragglers, Worked, is_slow


def engine(tokens: int = 1000, steps: int = 100, seconds: float = 1.0) -> Worked:
    return Worked(tokens, steps, seconds)


def test_metrics_of_several_engines():
    engines = {"a": engine(seconds=2.0), "b": engine(seconds=1.0), "c": engine(0, 0, 0.0)}
    assert speed.metrics(engines) == {
        "engines/working": 2.0,
        "engines/longest_seconds": 2.0,
        "engines/idle": pytest.approx(0.25),  # b had nothing to do for 1 of 2 s, a always
        "engines/slowest_tokens_per_second": 500.0,
    }


def test_one_engine_waits_for_nobody_and_has_no_metrics():
    assert speed.metrics({"a": engine()}) == {}
    assert speed.metrics({"a": engine(0, 0, 0.0), "b": engine(0, 0, 0.0)}) == {}


def test_an_engine_of_half_the_speed_is_told_of_once_in_the_second_step():
    found, engines = Stragglers(), {"a": engine(), "b": engine(seconds=2.0), "c": engine()}
    assert [found.hear(engines) for _ in range(4)] == [[], ["b"], [], []]


def test_one_that_was_faster_in_between_begins_anew():
    found = Stragglers()
    slow, well = {"a": engine(), "b": engine(seconds=2.0)}, {"a": engine(), "b": engine(seconds=1.9)}
    told = [found.hear(each) for each in (slow, well, slow, slow, well, slow, slow)]
    assert told == [[], [], [], ["b"], [], [], ["b"]]


def test_one_that_did_too_little_is_not_compared():
    found, engines = Stragglers(), {"a": engine(), "b": engine(tokens=10, steps=15, seconds=9.0)}
    assert [found.hear(engines) for _ in range(3)] == [[], [], []]


def test_few_long_responses_or_many_at_once_do_not_make_a_straggler():
    peers = [engine(), engine()]
    tail = engine(tokens=200, steps=200, seconds=2.0)  # a token takes ten times as long, a step does not
    crowded = engine(tokens=4000, steps=100, seconds=4.0)  # a step takes four times as long, a token does not
    assert not is_slow(tail, peers) and not is_slow(crowded, peers)
    assert is_slow(engine(seconds=2.0), peers)
