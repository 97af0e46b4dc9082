"""The reward that asks an endpoint, against a server that fails on purpose."""

import math
import threading
import time

import pytest
from failing_server import Server, drip, half
from pydantic import ValidationError
from sample_groups import make_group

from rlpipe.data.flow import Failure
from rlpipe.recipe.rewards import HttpReward
from rlpipe.rewards import attempts
from rlpipe.rewards.attempts import retry_after
from rlpipe.rewards.http import Http
from rlpipe.rewards.reward import Allowance, RewardUnusable

SECRET = "tok-9f31c7"


@pytest.fixture
def server(monkeypatch):
    with Server(monkeypatch) as server:
        yield server


def one(reward, group, seconds=60.0):
    [column] = reward.score_all([group], Allowance(seconds))
    return column


@pytest.fixture
def ask(server):
    """Score two responses against these replies of the server."""

    def ask(*replies, seconds=60.0, **keys):
        server.replies = replies
        reward = Http(HttpReward(kind="http", url=server.url("/score?key=1"), **keys))
        try:
            return one(reward, make_group(["4", "five"], {"answer": 4, "prompt": "raw"}), seconds)
        finally:
            reward.close()

    return ask


def ok(body='{"rewards": [1, 0.5]}', **headers):
    return 200, headers, body.encode()


def test_a_group_is_one_request_with_its_columns(ask, server):
    assert ask(ok()) == [1.0, 0.5]
    ((_, headers, body),) = server.requests
    assert body == {"prompts": ["2+2="] * 2, "completions": ["4", "five"], "answer": [4, 4]}
    assert "authorization" not in headers


GROUPS = [make_group(["4", "five"], {"answer": 4}, "a"), make_group(["6"], {"answer": 6, "level": 2}, "b", "3+3=")]


def test_groups_that_wait_share_a_request_as_far_as_the_recipe_says(server):
    reward = Http(HttpReward(kind="http", url=server.url("/score?key=1"), groups_per_request=2))
    assert [reward.takes(GROUPS[:1]), reward.takes(GROUPS), reward.takes(GROUPS * 2)] == [1, 2, 2]
    server.replies = [ok('{"rewards": [1, null, 0.5]}'), ok('{"rewards": [1, "x", 2]}'), ok('{"rewards": [1, 2]}')]
    assert reward.score_all(GROUPS, Allowance(60)) == [[1.0, None], [0.5]]
    assert server.requests[0][2] == {
        "prompts": ["2+2=", "2+2=", "3+3="], "completions": ["4", "five", "6"], "answer": [4, 4, 6],
        "level": [None, None, 2],
    }  # fmt: skip
    assert reward.score_all(GROUPS, Allowance(60)) == [
        [1.0, Failure("not_a_number", "the reward is 'x'")], [2.0]
    ]  # fmt: skip
    wrong = Failure("wrong_length", "2 rewards for 3 completions")
    assert reward.score_all(GROUPS, Allowance(60)) == [[wrong, wrong], [wrong]]


def test_by_default_a_request_is_a_group(server):
    assert Http(HttpReward(kind="http", url=server.url("/score?key=1"))).takes(GROUPS) == 1


def test_null_means_not_applicable(ask):
    assert ask(ok('{"rewards": [null, 1]}')) == [None, 1.0]


def test_the_token_comes_from_the_environment_and_never_into_a_message(ask, server, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE_TOKEN", SECRET)
    caplog.set_level(0)
    first, _ = ask((403, {}, f"bad token {SECRET}".encode()), token_env="JUDGE_TOKEN")
    assert server.requests[0][1]["authorization"] == f"Bearer {SECRET}"
    assert first == Failure("http_status", "status 403: 'bad token [token]'")
    assert SECRET not in caplog.text


def test_a_token_that_is_not_set_stops_the_run(monkeypatch):
    monkeypatch.delenv("JUDGE_TOKEN", raising=False)
    reward = Http(HttpReward(kind="http", url="http://127.0.0.1:9/", token_env="JUDGE_TOKEN"))
    with pytest.raises(RewardUnusable, match="the environment variable JUDGE_TOKEN"):
        reward.ready()


@pytest.mark.parametrize("token", ["two words", "key-5f\n", "schlüssel"])
def test_a_token_that_no_header_takes_stops_the_run_and_is_not_shown(monkeypatch, token):
    monkeypatch.setenv("JUDGE_TOKEN", token)
    reward = Http(HttpReward(kind="http", url="http://127.0.0.1:9/", token_env="JUDGE_TOKEN"))
    with pytest.raises(RewardUnusable, match=r"JUDGE_TOKEN .* holds spaces, line ends or other characters") as raised:
        one(reward, make_group(["x"]))
    assert token.strip() not in str(raised.value)


def test_too_many_requests_waits_as_long_as_it_is_told(ask, server):
    assert ask((429, {"Retry-After": "1"}, b""), ok()) == [1.0, 0.5]
    first, second = (request[0] for request in server.requests)
    assert 1.0 <= second - first < 10


def test_a_wait_beyond_the_deadline_is_not_begun(ask):
    begin = time.monotonic()
    first, _ = ask((429, {"Retry-After": "1000"}, b"later"))
    assert first == Failure("http_status", "status 429: 'later' (1 attempt, deadline=60)")
    assert time.monotonic() - begin < 10


def test_pauses_grow_and_chance_spreads_them():
    drawn = [[attempts.pause(attempt, after=0) for _ in range(50)] for attempt in (1, 2, 3, 99)]
    for pauses, shortest in zip(drawn, (0.25, 0.5, 1.0, 8.0), strict=True):
        assert all(shortest <= pause <= 1.5 * shortest for pause in pauses)
        assert len(set(pauses)) > 1
    assert all(7 <= attempts.pause(1, after=7) <= 7.125 for _ in range(50))


def test_a_server_that_always_fails_is_asked_until_the_deadline(ask, server):
    begin = time.monotonic()
    outcomes = ask((500, {}, b"oops"), deadline=1.5)
    assert time.monotonic() - begin < 10
    assert [o.kind for o in outcomes] == ["http_status"] * 2
    assert outcomes[0].message.startswith("status 500: 'oops' (")
    assert 2 <= len(server.requests) <= 4
    gaps = [b[0] - a[0] for a, b in zip(server.requests, server.requests[1:], strict=False)]
    assert gaps == sorted(gaps)


def test_a_wrong_request_is_not_repeated(ask, server):
    assert ask((404, {}, b"not here"))[0] == Failure("http_status", "status 404: 'not here'")
    assert len(server.requests) == 1


def test_a_server_that_hangs_is_a_deadline_within_the_groups_allowance(ask):
    release = threading.Event()
    begin = time.monotonic()
    outcomes = ask(lambda _: release.wait(20), timeout=0.4, seconds=1.0)
    release.set()
    assert time.monotonic() - begin < 10
    assert [o.kind for o in outcomes] == ["deadline"] * 2


def test_an_answer_drop_by_drop_is_late_too(ask):
    begin = time.monotonic()
    assert ask(drip, timeout=0.5, deadline=0.6)[0].kind == "deadline"
    assert time.monotonic() - begin < 5


def test_half_an_answer_is_tried_again(ask, server, monkeypatch):
    assert ask(half(b'{"rewards": [1,'), ok()) == [1.0, 0.5]
    assert len(server.requests) == 2
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 100.0)
    monkeypatch.setattr(attempts, "LONGEST_PAUSE", 100.0)  # longer than the deadline: there is one attempt
    assert ask(half(b'{"rewards": [1,'))[0].kind == "unreachable"


def test_nobody_there():
    reward = Http(HttpReward(kind="http", url="http://127.0.0.1:9/", deadline=0.5))
    (outcome,) = one(reward, make_group(["x"]))
    assert outcome.kind == "unreachable"


@pytest.mark.parametrize("body", ["", "null", "{}", "[1, 2]", '{"rewards": 1}', '{"rewards": [1', "<html>"])
def test_what_was_not_agreed_is_a_bad_answer(ask, server, body):
    first, second = ask(ok(body))
    assert first == second
    assert first.kind == "bad_answer"
    assert "got " in first.message
    assert len(server.requests) == 1


def test_a_wrong_count(ask):
    assert ask(ok('{"rewards": [1]}'))[0] == Failure("wrong_length", "1 rewards for 2 completions")


@pytest.mark.parametrize("bad", ["NaN", "Infinity", '"high"', "true", "[1]", "1" + "0" * 400])
def test_what_is_no_number_fails_its_row_alone(ask, bad):
    first, second = ask(ok(f'{{"rewards": [{bad}, 2]}}'))
    assert first.kind == "not_a_number"
    assert second == 2.0


def test_closing_ends_a_pause(server):
    server.replies = [(500, {"Retry-After": "50"}, b"")]
    reward = Http(HttpReward(kind="http", url=server.url("/score?key=1")))
    thread = threading.Thread(target=one, args=(reward, make_group(["x"])))
    thread.start()
    while not server.requests:
        time.sleep(0.01)
    reward.close()
    thread.join(10)
    assert not thread.is_alive()


def test_retry_after_is_a_number_or_a_date():
    assert [retry_after("7"), retry_after("0.5")] == [7.0, 0.5]
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert math.isclose(retry_after("Wed, 21 Oct 2095 07:28:00 GMT"), 2**31, rel_tol=1)
    assert [retry_after(text) for text in ("soon", "", "nan", "inf", "-3")] == [0.0] * 5


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"url": "localhost:8000"}, "expected an address such as"),
        ({"url": "https://me:secret@host/"}, "name a variable in `token_env` instead"),
        ({"url": "https://host/", "token_env": "hf_abcDEF"}, "in capitals; the token is its value"),
    ],
)
def test_addresses_and_tokens_in_the_recipe(keys, says):
    with pytest.raises(ValidationError, match=says):
        HttpReward(kind="http", **keys)
