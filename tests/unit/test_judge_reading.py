"""What an answer says of the options: its tokens' probabilities, or its text."""

import json
import math

import pytest

from rlpipe.data.flow import Failure
from rlpipe.rewards.judging.completion import Answer, Position, read_answer
from rlpipe.rewards.judging.question import Choice
from rlpipe.rewards.judging.reading import by_probability, by_text, check_options

AB = ("A", "B")


def position(token, **candidates):
    """Where `token` was written; underscores stand for spaces."""
    named = tuple((name.replace("_", " "), probability) for name, probability in candidates.items())
    return Position(token, dict(named)[token], named)


def by_tokens(*positions, options=AB, least_mass=0.1):
    text = "".join(position.token for position in positions)
    return by_probability(Answer(text, False, positions), options, least_mass)


def text(text, options=AB, cut=False):
    return by_text(Answer(text, cut, ()), options, max_tokens=8)


def close(choice, probabilities, mass):
    assert choice.probabilities == pytest.approx(probabilities, abs=1e-12)
    assert choice.mass == pytest.approx(mass, abs=1e-12)


def test_tokens_count_for_the_option_that_they_are_whatever_their_case_and_spaces():
    choice = by_tokens(position("A", A=0.5, _a=0.1, B=0.15, _B_=0.05, The=0.1))
    close(choice, (0.75, 0.25), 0.8)
    assert choice.said == "A"


def test_a_token_counts_for_the_option_that_it_begins_unless_it_begins_two():
    close(by_tokens(position("n", y=0.2, ye=0.1, n=0.3), options=("yes", "no")), (0.5, 0.5), 0.6)
    close(by_tokens(position("be", be=0.4, best=0.3, bet=0.1), options=("best", "better")), (0.75, 0.25), 0.4)


def test_grades_are_options_too():
    grades = {"1": 0.1, "2": 0.1, "3": 0.2, "4": 0.4}
    close(by_tokens(position("4", **grades), options=("1", "2", "3", "4", "5")), (0.125, 0.125, 0.25, 0.5, 0), 0.8)


def test_what_has_too_little_probability_is_no_choice_and_it_says_what_it_would_be():
    first = position("I", A=0.03, B=0.02, I=0.6, The=0.2)
    close(by_tokens(first, least_mass=0.05), (0.6, 0.4), 0.05)
    assert by_tokens(first, position(" think", _think=1.0)) == Failure(
        "outside_choice",
        "it would say 'I' (probability 0.6), and has written 'I think'; A, B together have the probability 0.05, "
        "least_mass=0.1",
    )
    assert by_tokens(position("I", I=1.0), least_mass=0.0).kind == "outside_choice", "nothing to tell them by"


def test_blank_tokens_before_the_answer_are_passed_over():
    blank = position("\n", A=0.1, **{"\n": 0.8})
    choice = by_tokens(blank, position("B", A=0.25, B=0.5))
    close(choice, (0.3 / 0.7, 0.4 / 0.7), 0.7)  # A: 0.1 + 0.8 x 0.25; B: 0.8 x 0.5
    close(by_tokens(position("B", B=0.5, A=0.5), position("A", A=1.0)), (1.0, 0.0), 0.5)


def test_a_word_that_only_begins_like_an_option_is_none():
    """`Answer: B` in a tokenizer that splits it: what was written tells that `A` was no choice of A."""
    first = position("A", A=0.6, B=0.2)
    close(by_tokens(first, position("nswer", nswer=1.0)), (0.0, 1.0), 0.2)
    close(by_tokens(first, position(".", **{".": 1.0})), (0.75, 0.25), 0.8)
    close(by_tokens(position("y", y=0.9), position("es", es=1.0), options=("yes", "no")), (1.0, 0.0), 0.9)
    assert by_tokens(position("y", y=0.9), position("ou", ou=1.0), options=("yes", "no")).kind == "outside_choice"


def test_rounding_above_one_is_one():
    assert by_tokens(position("A", A=1.0, B=1e-9)).mass == 1.0


@pytest.mark.parametrize(
    ("written", "probabilities"),
    [
        ("A", (1, 0)), ("b.", (0, 1)), ("**B**", (0, 1)), ("Response B is a better one", (0, 1)), ("(A)\n", (1, 0)),
        ("a", (1, 0)), ("Neither", None), ("", None), ("A or B", None), ("Both are a mess", None), ("Answer", None),
    ],
)  # fmt: skip
def test_a_text_chooses_what_it_alone_names(written, probabilities):
    answer = text(written)
    if probabilities is None:
        assert answer.kind == "outside_choice" and repr(written) in answer.message
    else:
        assert answer == Choice(probabilities, 1.0, written)


def test_longer_options_are_named_in_any_case_and_as_words_of_their_own():
    options = ("harmful", "not harmful")
    assert text("It is Not harmful.", options).probabilities == (0, 1)
    assert text("HARMFUL", options).probabilities == (1, 0)
    assert text("harmfully", options).kind == "outside_choice"


def test_of_a_text_that_was_cut_the_rest_might_name_another():
    assert text("A. The first one is", cut=True).probabilities == (1, 0)
    assert text("B", cut=True).probabilities == (0, 1)
    cut = text("A is better than", cut=True)
    assert cut == Failure("outside_choice", "'A is better than' was cut at max_tokens=8; raise it")
    assert text("", cut=True).message == "'' names none of A, B, and was cut at max_tokens=8"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("A",), "two options or more"),
        (("A", " "), "none of them empty"),
        (("1", "2", "10"), "the option '1' begins the option '10'"),
        (("a", "A"), "the option 'a' begins the option 'A'"),
    ],
)
def test_options_must_be_told_apart_by_their_first_token(options, says):
    with pytest.raises(ValueError, match=says):
        check_options(options)


def test_options_that_can_be_told_apart():
    check_options(("A", "B"))
    check_options(("01", "02", "10"))


def completion(content="A", finish="stop", **logprobs):
    choice = {"message": {"content": content}, "finish_reason": finish, **logprobs}
    return {"choices": [choice]}


def token(token, logprob, **top):
    return {"token": token, "logprob": logprob, "top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()]}


def test_a_completion_is_read_with_the_token_that_was_written_among_the_candidates():
    logprobs = {"content": [token("A", math.log(0.25), B=math.log(0.5)), token(".", 1e-7, **{".": 1e-7})]}
    answer = read_answer(completion("A.", "length", logprobs=logprobs))
    assert (answer.text, answer.cut, len(answer.positions)) == ("A.", True, 2)
    assert dict(answer.positions[0].candidates) == {"B": pytest.approx(0.5), "A": pytest.approx(0.25)}
    assert answer.positions[1].probability == 1.0


@pytest.mark.parametrize("logprobs", [{}, {"logprobs": None}, {"logprobs": {"content": None}},
                                      {"logprobs": {"content": [token("A", -0.1)]}}])  # fmt: skip
def test_a_completion_without_probabilities_has_no_positions(logprobs):
    assert read_answer(completion(**logprobs)) == Answer("A", False, ())


def test_a_refusal_is_a_text_too():
    said = completion(None)
    said["choices"][0]["message"]["refusal"] = "I can't."
    assert read_answer(said).text == "I can't."
    assert read_answer(completion(None)).text == ""


@pytest.mark.parametrize(
    "said",
    [
        None, [], {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": {}}]}, completion(["A"]),
        completion(7),
        completion(logprobs={"content": [{"token": "A"}]}),
        completion(logprobs={"content": [token("A", None, A=None)]}),
        completion(logprobs={"content": [token("A", math.nan, A=-1)]}),
        completion(logprobs={"content": [token("A", 5.0, A=5.0)]}),
        completion(logprobs={"content": [token("A", -1, A="high")]}),
    ],
)  # fmt: skip
def test_what_is_no_completion_is_a_bad_answer_that_shows_it(said):
    failure = read_answer(said)
    assert failure.kind == "bad_answer"
    assert json.dumps(said)[:100] in failure.message
