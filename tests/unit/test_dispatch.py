"""Which engine gets what: the least to do, and conversations where their beginning is cached."""

from types import SimpleNamespace

import numpy as np
from fake_engine import FakeEngine, pool_of
from tiny_models import request

from rlpipe.data.flow import GroupRequest, Sampling
from rlpipe.rollout import dispatch
from rlpipe.rollout.dispatch import Dispatch, ExpectedLength
from rlpipe.rollout.seat import Seat


def response(length: int):
    return SimpleNamespace(response_tokens=np.zeros(length, np.int32))


def seats(*tokens: int) -> list[Seat]:
    return [Seat("policy", SimpleNamespace(name=f"policy[{i}]"), tokens=t) for i, t in enumerate(tokens)]


def shares(subject: Dispatch, requests, engines) -> list[list[str]]:
    found = subject.assign(subject.ask(requests), engines)
    return [[group.request.group_id for group in found.get(engine, [])] for engine in engines]


def turn(name: str, conversation: str, prompt: int = 10) -> GroupRequest:
    return GroupRequest(name, "p", np.zeros(prompt, np.int32), (1,), Sampling(20, 1.0, ()), conversation)


def test_a_response_is_expected_to_be_as_long_as_those_before_it_on_average():
    expected = ExpectedLength()
    assert expected.of(request(0, max_new_tokens=40)) == 40, "nothing is known: the most there may be"
    for length in (10, 20, 31):
        expected.hear(response(length))
    assert expected.of(request(0, max_new_tokens=40)) == 21, "61 / 3, rounded up"
    assert expected.of(request(0, max_new_tokens=12)) == 12


def test_what_is_expected_follows_a_policy_whose_answers_grow():
    expected = ExpectedLength()
    for length in [10] * 3000 + [50] * 3000:
        expected.hear(response(length))
    # 10 + 40 (1 - (1 - 1/1000) ** 3000)
    assert expected.of(request(0, max_new_tokens=100)) == 49


def test_each_group_goes_to_the_engine_with_the_fewest_tokens_to_come():
    engines = seats(100, 0, 60)
    # 2 responses of 12 and a prompt of 9: 33 tokens each.
    groups = [request(i, samples=2) for i in range(5)]
    assert shares(Dispatch(), groups, engines) == [[], ["g0", "g1", "g3"], ["g2", "g4"]]
    assert [engine.tokens for engine in engines] == [100, 99, 126]


def test_turns_go_to_the_engine_that_has_the_conversation_whatever_it_has_to_do():
    subject, engines = Dispatch(), seats(0, 0)
    assert shares(subject, [turn("a", "a"), turn("b", "b")], engines) == [["a"], ["b"]]
    engines[1].tokens = 5000
    assert shares(subject, [turn("b/s0/t1", "b"), turn("b/s1/t1", "b"), turn("c", "c")], engines) == [
        ["c"],
        ["b/s0/t1", "b/s1/t1"],
    ]


def test_a_conversation_whose_engine_is_lost_goes_on_elsewhere_and_stays_there():
    subject, engines = Dispatch(), seats(0, 0)
    assert shares(subject, [turn("a", "a")], engines) == [["a"], []]
    engines[0].revival = object()
    assert shares(subject, [turn("a/s0/t1", "a")], engines[1:]) == [["a/s0/t1"]]
    engines[0].revival = None
    assert shares(subject, [turn("a/s0/t2", "a")], engines) == [[], ["a/s0/t2"]]


def test_requests_of_no_conversation_are_not_remembered_and_of_conversations_only_so_many(monkeypatch):
    monkeypatch.setattr(dispatch, "CONVERSATIONS", 2)
    subject, engines = Dispatch(), seats(0)
    shares(subject, [request(0), *(turn(name, name) for name in "abc")], engines)
    assert list(subject._homes) == ["b", "c"]


def test_in_a_pool_the_second_turn_finds_its_engine():
    engines = [FakeEngine(lambda request, sample: [7, 1], {1}) for _ in range(2)]
    subject = pool_of(*engines)
    subject.submit("policy", [turn("a", "a"), turn("b", "b")])
    while subject.outstanding:
        subject.finished(0.0)
    subject.submit("policy", [turn("b/s0/t1", "b"), turn("a/s0/t1", "a")])
    assert [[r.group_id for r in engine.requests] for engine in engines] == [["a", "a/s0/t1"], ["b", "b/s0/t1"]]
