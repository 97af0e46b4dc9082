"""A judge behind an OpenAI-compatible server: ours, which fails on purpose. vLLM's own: test_vllm_serve.py."""

import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from failing_server import Server, drip, half

from rlpipe.data.flow import Failure
from rlpipe.recipe import secrets
from rlpipe.recipe.judging import EndpointJudge
from rlpipe.rewards import attempts
from rlpipe.rewards.judging.endpoint import Endpoint
from rlpipe.rewards.judging.question import Arbiter, Question
from rlpipe.rewards.judging.usage import Usage
from rlpipe.rewards.reward import Allowance, RewardUnusable

KEY = "sk-none-9f31c7"
QUESTION = Question("q", ({"role": "user", "content": "A or B?"},), ("A", "B"), seed=2**40 + 5)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.02)


@pytest.fixture
def server(monkeypatch):
    with Server(monkeypatch) as server:
        yield server


@pytest.fixture
def judge(server):
    """Judges that ask this server, with these keys of the recipe."""
    made = []

    def judge(least_mass=0.1, **keys):
        made.append(Endpoint(EndpointJudge(kind="openai", url=server.url("/v1/"), model="tiny", **keys), least_mass))
        return made[-1]

    yield judge
    for one in made:
        one.close()


@pytest.fixture
def ask(judge, server):
    """One question against these replies of the server: what the judge says, and what it took."""

    def ask(*replies, seconds=60.0, **keys):
        server.replies, one = replies, judge(**keys)
        [said] = one.ask([QUESTION], Allowance(seconds))
        return said, one.usage()

    return ask


def said(text="A", finish="stop", usage=(100, 2), **probabilities):
    """A completion; probabilities of its first token's alternatives, where some are given."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if probabilities:
        top = [{"token": token, "logprob": math.log(p)} for token, p in probabilities.items()]
        choice["logprobs"] = {"content": [top[0] | {"top_logprobs": top}]}
    body = {"object": "chat.completion", "choices": [choice]}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return 200, {}, json.dumps(body).encode()


SOFT = said(A=0.6, B=0.2)


def refusal(message, status=400):
    return status, {}, json.dumps({"error": {"message": message}}).encode()


def soft(choice):
    return (*(round(p, 9) for p in choice.probabilities), round(choice.mass, 9))


def test_it_is_asked_as_the_api_has_it_and_its_preference_is_soft(ask, server):
    choice, usage = ask(SOFT)
    assert soft(choice) == (0.75, 0.25, 0.8) and choice.said == "A"
    assert usage == Usage(requests=1, prompt_tokens=100, completion_tokens=2)
    [(_, headers, body)] = server.requests
    assert body == {
        "model": "tiny", "messages": [{"role": "user", "content": "A or B?"}], "max_tokens": 8, "temperature": 0.0,
        "logprobs": True, "top_logprobs": 20,
    }  # fmt: skip
    assert "authorization" not in headers


def test_one_that_samples_gets_the_seed_of_the_question(ask, server):
    ask(SOFT, temperature=0.7, max_tokens=1)
    body = server.requests[0][2]
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.7, 5, 1)


def test_least_mass_is_that_of_the_recipe(ask):
    outside = said("I", I=0.7, A=0.09, B=0.03)
    assert ask(outside, least_mass=0.119)[0].probabilities == pytest.approx((0.75, 0.25))
    failure, usage = ask(outside, least_mass=0.121)
    assert failure.kind == "outside_choice" and "'I' (probability 0.7)" in failure.message
    assert usage.failures == {"outside_choice": 1} and usage.prompt_tokens == 100, "paid for, all the same"


def test_cost_by_the_million_and_what_was_not_counted(judge, server):
    server.replies = [said(usage=(1_000, 10), A=0.5), said(usage=(3_000, 6), A=0.5), said(usage=None, A=0.5)]
    one = judge(prices={"prompt": 2.5, "completion": 10.0}, requests=1)
    one.ask([QUESTION] * 3, Allowance(60))
    assert one.usage() == Usage(
        requests=3, prompt_tokens=4_000, completion_tokens=16, unmetered=1, cost=pytest.approx(0.01016)
    )


def test_what_may_go_better_is_tried_again(ask, server):
    choice, usage = ask((429, {"Retry-After": "0.3"}, b"slow down"), (500, {}, b"oops"), half(b'{"choices": ['), SOFT)
    assert soft(choice) == (0.75, 0.25, 0.8)
    assert usage == Usage(requests=4, retries=3, prompt_tokens=100, completion_tokens=2)
    times = [request[0] for request in server.requests]
    assert times[1] - times[0] >= 0.3


def test_an_attempt_that_hangs_is_left_and_tried_again(ask):
    release = threading.Event()
    begin = time.monotonic()
    choice, usage = ask(lambda _: release.wait(20), SOFT, timeout=1.0)
    release.set()
    assert soft(choice) == (0.75, 0.25, 0.8) and (usage.requests, usage.retries) == (2, 1)
    assert time.monotonic() - begin < 10


def test_an_answer_drop_by_drop_is_late_too(ask):
    failure, usage = ask(drip, timeout=0.2, deadline=0.3)
    assert failure.kind == "deadline" and usage.failures == {"deadline": 1}


def test_until_the_deadline_of_the_question(ask, monkeypatch):
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.1)
    failure, usage = ask((503, {}, b"busy"), deadline=1.5)
    assert failure.kind == "http_status" and failure.message.startswith("status 503: 'busy' (")
    assert usage.requests == usage.retries + 1 >= 3 and usage.failures == {"http_status": 1}


@pytest.mark.parametrize(("wait", "seconds"), [("1000", 600), ("20", 10)])
def test_a_pause_beyond_the_deadline_or_the_allowance_is_not_begun(ask, wait, seconds):
    begin = time.monotonic()
    failure, _ = ask((429, {"Retry-After": wait}, b"later"), seconds=seconds)
    assert failure == Failure("http_status", "status 429: 'later' (1 attempt, deadline=300)")
    assert time.monotonic() - begin < 10


def test_nobody_there(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 8.0)  # there is one attempt
    one = Endpoint(EndpointJudge(kind="openai", url="http://127.0.0.1:9/v1", model="tiny", deadline=5.0))
    [failure] = one.ask([QUESTION], Allowance(60))
    one.close()
    assert failure.kind == "unreachable" and one.usage().failures == {"unreachable": 1}


@pytest.mark.parametrize("status", [401, 404, 302])
def test_what_repeating_does_not_help_fails_at_once_with_the_servers_words(ask, status):
    failure, usage = ask((status, {}, b"the model `tiny` does not exist"))
    assert failure == Failure("http_status", f"status {status}: 'the model `tiny` does not exist'")
    assert usage == Usage(requests=1, failures={"http_status": 1})


def test_a_question_that_the_model_cannot_take_is_too_long(ask):
    failure, usage = ask(refusal("This model's maximum context length is 256 tokens. However, you requested 8 output"))
    assert failure.kind == "too_long" and "256 tokens" in failure.message
    assert usage.failures == {"too_long": 1}


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"choices": [{"mess', b"[1]", b'{"choices": []}', b"\xff\xfe"])
def test_what_was_not_agreed_is_a_bad_answer(ask, body):
    failure, usage = ask((200, {}, body))
    assert failure.kind == "bad_answer" and failure.message.startswith("expected a chat completion, got ")
    assert usage == Usage(requests=1, unmetered=1, failures={"bad_answer": 1})


def test_a_body_that_cannot_be_unpacked_is_a_bad_answer(ask):
    failure, usage = ask((200, {"Content-Encoding": "gzip"}, b"not packed"))
    assert failure.kind == "bad_answer" and failure.message.startswith("DecodingError")
    assert usage == Usage(requests=1, failures={"bad_answer": 1})


def asking(content):
    return replace(QUESTION, messages=({"role": "user", "content": content},))


def by_content(replies):
    return lambda handler: replies[handler.asked["messages"][0]["content"]]


def test_questions_fail_one_by_one_and_answers_keep_their_order(judge, server):
    server.replies = [by_content({"1": SOFT, "2": (404, {}, b"no"), "3": said(B=1.0), "4": said("no", no=1.0)})]
    one = judge()
    first, second, third, fourth = one.ask([asking(content) for content in "1234"], Allowance(60))
    assert soft(first) == (0.75, 0.25, 0.8) and third.probabilities == (0.0, 1.0)
    assert (second.kind, fourth.kind) == ("http_status", "outside_choice")
    assert one.usage().failures == {"http_status": 1, "outside_choice": 1} and one.usage().requests == 4


def test_so_many_at_once_and_no_more_over_all_who_ask(judge, server):
    lock, full, under_way, most = threading.Lock(), threading.Event(), 0, 0

    def slow(_):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
            if under_way == 3:
                full.set()
        full.wait(10)
        time.sleep(0.05)
        with lock:
            under_way -= 1
        return SOFT

    server.replies, one = [slow], judge(requests=3)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: one.ask([QUESTION] * 2, Allowance(60)), range(4)))
    assert most == 3
    assert [soft(choice) for pair in answers for choice in pair] == [(0.75, 0.25, 0.8)] * 8
    assert one.usage().requests == 8


def test_waiting_for_a_turn_is_not_of_the_deadline(judge, server):
    server.replies = [lambda _: time.sleep(0.4) or SOFT]
    answers = judge(requests=1, deadline=1.4).ask([QUESTION] * 4, Allowance(60))
    assert [soft(answer) for answer in answers] == [(0.75, 0.25, 0.8)] * 4


def test_a_server_that_refuses_log_probabilities_is_asked_for_fewer_then_for_none(judge, server, caplog):
    server.replies = [
        refusal("top_logprobs must be at most 5"), refusal("logprobs are not supported", 403), said("B"), said("A"),
        said("Neither"),
    ]  # fmt: skip
    one = judge(requests=1)
    second, first, third = one.ask([QUESTION] * 3, Allowance(60))
    assert (second.probabilities, first.probabilities) == ((0.0, 1.0), (1.0, 0.0))
    assert third == Failure("outside_choice", "'Neither' names none of A, B")
    asked = [body.get("top_logprobs") for _, _, body in server.requests]
    assert asked == [20, 5, None, None, None], "remembered"
    assert "logprobs" not in server.requests[2][2]
    assert [record.getMessage() for record in caplog.records] == [
        f"the judge {one.name} gives no log-probabilities: its preference is read from what it writes, as 1 or 0"
    ]
    assert one.usage() == Usage(
        requests=5, retries=2, prompt_tokens=300, completion_tokens=6, without_probabilities=2,
        failures={"outside_choice": 1},
    )  # fmt: skip


def test_five_alternatives_are_taken_where_twenty_are_refused(ask, caplog):
    choice, usage = ask(refusal("Requested sample logprobs of 20, which is greater than max allowed: 5"), SOFT)
    assert soft(choice) == (0.75, 0.25, 0.8) and usage.without_probabilities == 0
    assert "gives the log-probabilities of no more than 5 tokens: rarer options count as 0" in caplog.text


def test_a_refusal_that_only_mentions_log_probabilities_is_not_learned(judge, server):
    """Such as one that repeats the request: what helped nothing is not what was wrong."""
    wrong = refusal('too long: {"logprobs": true}')
    server.replies = [wrong, wrong, wrong, SOFT]
    failure, choice = judge(requests=1).ask([QUESTION] * 2, Allowance(60))
    assert failure.kind == "http_status" and soft(choice) == (0.75, 0.25, 0.8)
    assert [body.get("top_logprobs") for _, _, body in server.requests] == [20, 5, None, 20]


def test_a_server_that_ignores_log_probabilities_is_told_of_once(judge, server, caplog):
    server.replies, one = [said("A")], judge()
    assert [choice.probabilities for choice in one.ask([QUESTION] * 3, Allowance(60))] == [(1.0, 0.0)] * 3
    assert len(caplog.records) == 1 and "gives no log-probabilities" in caplog.text
    assert one.usage().without_probabilities == 3


def test_a_judge_that_thinks_first_is_read_by_its_text_alone(ask, server, caplog):
    choice, usage = ask(said("B"), probabilities=False, max_tokens=500)
    assert "logprobs" not in server.requests[0][2] and server.requests[0][2]["max_tokens"] == 500
    assert choice.probabilities == (0.0, 1.0)
    assert usage.without_probabilities == 1 and not caplog.records


def test_newer_models_name_the_limit_otherwise(judge, server):
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    server.replies = [refusal(words), SOFT]
    one = judge(requests=1, max_tokens=3)
    one.ask([QUESTION] * 2, Allowance(60))
    limits = [(body.get("max_tokens"), body.get("max_completion_tokens")) for _, _, body in server.requests]
    assert limits == [(3, None), (None, 3), (None, 3)]


def test_the_key_is_sent_and_stands_nowhere(ask, server, monkeypatch, caplog):
    monkeypatch.setenv("JUDGE", KEY)
    caplog.set_level(0)
    failure, usage = ask((401, {}, f"no such key: {KEY}".encode()), api_key_env="JUDGE")
    assert server.requests[0][1]["authorization"] == f"Bearer {KEY}"
    assert failure == Failure("http_status", "status 401: 'no such key: [token]'")
    choice, _ = ask(said(f"A {KEY}"), api_key_env="JUDGE")
    assert choice.said == "A [token]"
    assert KEY not in caplog.text + str(usage)


def test_a_key_that_is_not_set_stops_the_run(judge, monkeypatch):
    monkeypatch.delenv("JUDGE", raising=False)
    with pytest.raises(RewardUnusable, match=r"the judge tiny at .*: the environment variable JUDGE \(`api_key_env`\)"):
        judge(api_key_env="JUDGE").ready()


def test_the_key_of_a_recipe_is_kept_from_other_processes(monkeypatch):
    monkeypatch.setattr(secrets, "_known", set())
    monkeypatch.setattr(secrets, "_named", set())
    monkeypatch.setenv("JUDGE", KEY)
    secrets.settle({"rewards": {"mix": [{"kind": "judge", "by": {"kind": "openai", "api_key_env": "JUDGE"}}]}})
    assert secrets.without({"JUDGE": KEY, "PATH": "/bin"}) == {"PATH": "/bin"}
    assert Failure("http_status", f"no such key: {KEY}").message == "no such key: [redacted]"


def test_options_that_cannot_be_told_apart_stop_the_run(judge, server):
    with pytest.raises(RewardUnusable, match="the option '1' begins the option '10'"):
        judge().ask([replace(QUESTION, options=("1", "10"))], Allowance(60))
    assert server.requests == []


def test_closing_ends_what_waits_and_what_is_asked_later(judge, server):
    server.replies, one = [(500, {"Retry-After": "50"}, b"")], judge()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one.ask, [QUESTION] * 2, Allowance(600))
        while len(server.requests) < 2:
            time.sleep(0.01)
        one.close()
        closed = Failure("unreachable", f"the judge {one.name} was closed")
        assert waiting.result(10) == [closed, closed]
    assert one.ask([QUESTION], Allowance(60)) == [closed]
    one.close()


def test_it_is_an_arbiter(judge, server):
    arbiter: Arbiter = judge()
    assert arbiter.name == f"tiny at {server.url('').removeprefix('http://')}"
    arbiter.start()
    arbiter.ready()
    assert arbiter.ask([], Allowance(60)) == []


def test_the_rate_limit_of_the_recipe_counts_repeated_requests_too(judge, server):
    server.replies, begin = [(500, {}, b""), SOFT], time.monotonic()
    answers = judge(requests_per_minute=150, deadline=1.5).ask([QUESTION] * 4, Allowance(60))
    assert time.monotonic() - begin >= 4 * 0.4, "five requests"
    assert [soft(answer) for answer in answers] == [(0.75, 0.25, 0.8)] * 4, "waiting is not of the deadline"


def test_the_token_limit_goes_by_what_the_server_counts(judge, server):
    server.replies, begin = [said(usage=(500, 0), A=1.0)], time.monotonic()
    judge(tokens_per_minute=60_000, requests=1).ask([QUESTION] * 2, Allowance(60))
    assert time.monotonic() - begin >= 0.5
