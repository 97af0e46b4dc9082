"""Rate limits, counts and the recipe of a judge behind an endpoint: what needs no server."""

import pytest
from pydantic import ValidationError

from rlpipe.recipe.judging import EndpointJudge
from rlpipe.rewards.judging.pace import Pace
from rlpipe.rewards.judging.usage import Usage


def test_requests_are_spread_over_the_minute():
    pace = Pace(requests_per_minute=60, tokens_per_minute=None)
    assert [pace.book(1_000, now=0.0) for _ in range(4)] == [0.0, 1.0, 2.0, 3.0]
    assert pace.book(1_000, now=3.5) == 0.5
    assert pace.book(1_000, now=100.0) == 0.0, "what was not used is not made up for"
    assert pace.book(1_000, now=100.0) == 1.0


def test_tokens_are_spread_over_the_minute_and_corrected():
    pace = Pace(requests_per_minute=None, tokens_per_minute=6_000)  # 100 a second
    assert [pace.book(50, now=0.0) for _ in range(3)] == [0.0, 0.5, 1.0]
    pace.correct(+150)
    assert pace.book(50, now=1.0) == 2.0
    pace.correct(-100)
    assert pace.book(50, now=3.0) == 0.0


def test_both_limits_hold():
    pace = Pace(requests_per_minute=60, tokens_per_minute=6_000)
    assert [pace.book(tokens, now=0.0) for tokens in (300, 10, 10, 10)] == [0.0, 3.0, 4.0, 5.0]


def test_no_limit_is_no_wait():
    pace = Pace(None, None)
    assert [pace.book(10**9, now=5.0) for _ in range(3)] == [0.0] * 3


def test_usages_add_up():
    one = Usage(3, 1, 10, 2, 1, 0.5, 1, {"deadline": 1, "bad_answer": 2})
    assert one + Usage() == one
    assert one + Usage(1, 1, 1, 1, 1, 0.25, 1, {"deadline": 1}) == Usage(
        4, 2, 11, 3, 2, 0.75, 2, {"deadline": 2, "bad_answer": 2}
    )


def test_what_was_added_is_what_makes_the_sum():
    before, after = (
        Usage(3, 1, 10, 2, 1, 0.5, 1, {"deadline": 1}),
        Usage(5, 1, 30, 4, 1, 2.5, 1, {"deadline": 2, "x": 1}),
    )
    assert after.since(before) == Usage(2, 0, 20, 2, 0, 2.0, 0, {"deadline": 1, "x": 1})
    assert before + after.since(before) == after


URL = {"url": "https://host/v1"}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"url": "host:8000/v1"}, "expected an address such as `https://host:8000/v1`"),
        ({"url": "https://me:secret@host/v1"}, "name a variable in `api_key_env` instead"),
        ({"url": "https://host/v1?key=abc"}, "a key belongs into `api_key_env`"),
        ({"url": "https://host/v1/chat/completions"}, "`/chat/completions` is added"),
        (URL | {"api_key_env": "sk-abcDEF"}, "in capitals; the token is its value"),
        (URL | {"temperature": -1.0}, "greater than or equal to 0"),
        (URL | {"requests": 0}, "greater than 0"),
        (URL | {"prices": {"prompt": 1.0}}, "completion"),
        (URL | {"api_key": "sk-abc"}, "Extra inputs are not permitted"),
    ],
)
def test_what_a_recipe_may_not_say(keys, says):
    with pytest.raises(ValidationError, match=says):
        EndpointJudge(kind="openai", model="tiny", **keys)
