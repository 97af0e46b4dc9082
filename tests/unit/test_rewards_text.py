"""Rewards that look at text alone: regex, format, and what `exact` takes out of a response."""

import time

import pytest
from pydantic import ValidationError
from sample_groups import make_group

from rlpipe.data.flow import Failure
from rlpipe.recipe.rewards import ExactReward, FormatReward, RegexReward
from rlpipe.rewards import extract, regex
from rlpipe.rewards.exact import Exact
from rlpipe.rewards.format import Format
from rlpipe.rewards.killable import Pool
from rlpipe.rewards.reward import Allowance


def score(reward, completions, columns=None, seconds=60.0):
    try:
        return reward.score(make_group(completions, columns), Allowance(seconds))
    finally:
        reward.close()


# Regular expressions


def regex_reward(**keys):
    recipe = RegexReward(kind="regex", **keys)
    return regex.Regex(recipe, Pool(recipe.name, regex.FACTORY, regex.factory_options(recipe), 1, 60.0))


def test_a_pattern_is_found_anywhere_or_must_match_all():
    completions = ["so 42", "42", "no"]
    assert score(regex_reward(pattern=r"\d+"), completions) == [1.0, 1.0, 0.0]
    assert score(regex_reward(pattern=r"\d+", full_match=True), completions) == [0.0, 1.0, 0.0]


def test_a_group_is_compared_with_the_answer():
    completions = ["answer: 42", "answer: 41", "42", "answer: "]
    reward = regex_reward(pattern=r"answer: (?P<n>\d+)?", group="n", answer_column="sum")
    assert score(reward, completions, {"sum": 42}) == [1.0, 0.0, 0.0, 0.0]
    assert score(regex_reward(pattern=r"(\d)(\d)", group=2), ["42"], {"answer": "2"}) == [1.0]


def test_the_answer_column_is_needed_only_for_a_group():
    assert score(regex_reward(pattern="a"), ["a"]) == [1.0]
    (outcome,) = score(regex_reward(pattern="a", group=0), ["a"])
    assert outcome.kind == "missing_column"


def test_a_pattern_that_never_ends_is_killed_and_fails_its_row_alone():
    reward = regex_reward(pattern=r"^(a+)+$", deadline=1.0)
    reward.ready()
    begin = time.monotonic()
    outcomes = score(reward, ["aaa", "a" * 60 + "b", "a"])
    assert time.monotonic() - begin < 20
    assert outcomes == [1.0, Failure("deadline", "no answer within 1 s; its process was killed"), 1.0]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"pattern": "(a"}, r"`\(a` is no regular expression: missing \), unterminated subpattern at position 0"),
        ({"pattern": "(a)", "group": 2}, "group=2 is not in `pattern`; it has 0, 1"),
        ({"pattern": "(?P<n>a)", "group": "m"}, "group=m is not in `pattern`; it has 0, 1, n"),
    ],
)
def test_a_bad_pattern_or_group_is_an_error_of_the_recipe(keys, says):
    with pytest.raises(ValidationError, match=says):
        RegexReward(kind="regex", **keys)


# Format


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        (" <think>\n</think>\n<answer>1 < 2</answer>\n", 1.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think>", 0.0),
        ("<think>a</think> so <answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer> done", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<think>a</think><think>c</think><answer>b</answer>", 0.0),
        ("</think>a<think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("", 0.0),
    ],
)
def test_format_wants_each_tag_once_in_order_and_nothing_outside(text, value):
    assert score(Format(FormatReward(kind="format")), [text]) == [value]


def test_format_takes_tags_of_ones_own():
    assert score(Format(FormatReward(kind="format", tags=["plan"])), ["<plan>x</plan>", "<p>x</p>"]) == [1.0, 0.0]


@pytest.mark.parametrize("tags", [["a", "b", "a"], ["<a>"], []])
def test_tags_are_names_and_different(tags):
    with pytest.raises(ValidationError):
        FormatReward(kind="format", tags=tags)


# What counts of a response


def test_exact_after_a_mark():
    reward = Exact(ExactReward(kind="exact", answer_after="####"))
    assert score(reward, ["#### 42", "2 #### 4\n#### 42", "42", "#### 41"], {"answer": "6*7\n#### 42"}) == [1, 1, 1, 0]
    (outcome,) = score(reward, ["42"], {"answer": "42"})
    assert outcome == Failure("unparseable_reference", "no answer_after='####' in the reference '42'")


def test_exact_inside_a_tag():
    reward = Exact(ExactReward(kind="exact", inside="answer"))
    completions = ["<answer> 42 </answer>.", "<answer>1</answer><answer>42</answer>", "42", "<answer>42", "42</answer>"]
    assert score(reward, completions, {"answer": "42"}) == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_the_program_of_a_response():
    assert extract.program("x = 1") == "x = 1"
    assert extract.program("First\n```python\na\n```\nthen\n```py\nb\nc\n```\nprints\n```\n3\n```\n") == "b\nc\n"
    assert extract.program("```\na\n```\n```js\nb\n```") == "b\n"
    assert extract.program("```python\na\n") == "```python\na\n"
