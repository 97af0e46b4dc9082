"""Judges as rewards: what is asked, and what answers amount to."""

import json

import pytest
from sample_groups import make_group

from rlpipe.data.flow import Failure, Score
from rlpipe.data.judge_template import Template
from rlpipe.pipelines.judges import template_of
from rlpipe.recipe.judge import JudgeReward
from rlpipe.rewards.judging.judged import Drawn, Judged
from rlpipe.rewards.judging.question import Choice
from rlpipe.rewards.mix import Mix
from rlpipe.rewards.reward import Allowance, Explained, RewardUnusable

COMPARE = Template("t@1", ({"role": "user", "content": "{prompt}|{first}|{second}"},), ("A", "B"), ())
GRADE = Template("g@2", ({"role": "user", "content": "{prompt}|{response}|{principle}"},), ("yes", "no"), (1.0, 0.0))


class Scripted:
    """Answers by the text of the question."""

    name = "scripted"

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def start(self): ...

    def ready(self): ...

    def close(self): ...

    def usage(self):
        return None

    def ask(self, questions, allowance):
        texts = [question.messages[0]["content"].partition("|")[2] for question in questions]
        self.asked += texts
        return [self._answer(self.answers[text]) for text in texts]

    def _answer(self, said):
        return said if isinstance(said, Failure) else Choice((said, 1.0 - said), 0.9)


def group(*completions, **columns):
    return make_group(completions, columns)


def judge(answers, template=COMPARE, draw=lambda prompt: None, **settings):
    by = {"kind": "engine", "path": "x"}
    recipe = JudgeReward.model_validate({"kind": "judge", "by": by} | settings)
    return Judged(recipe, Scripted(answers), template, draw, at_once=8)


def values(components):
    return [c.value if isinstance(c, Explained) else c for c in components]


ANSWERS = {"a|b": 0.9, "b|a": 0.4, "a|c": 1.0, "c|a": 0.2, "b|c": 0.5, "c|b": 0.5}


def test_a_response_is_worth_its_mean_probability_of_being_better_over_both_orders():
    [found] = judge(ANSWERS).score_all([group("a", "b", "c")], Allowance(1))
    a_b, a_c, b_c = (0.9 + 0.6) / 2, (1.0 + 0.8) / 2, 0.5
    expected = [(a_b + a_c) / 2, (1 - a_b + b_c) / 2, (1 - a_c + 1 - b_c) / 2]
    assert values(found) == pytest.approx(expected)
    assert sum(values(found)) == pytest.approx(3 / 2), "win rates of a group add up to half its size"


def test_where_a_label_comes_from_goes_along():
    [found] = judge(ANSWERS, seed=7).score_all([group("a", "b")], Allowance(1))
    assert found[0].details == {
        "judge": "scripted", "template": "t@1", "seed": 7,
        "comparisons": [{"other": 1, "better": pytest.approx(0.75), "as_first": 0.9, "as_second": 0.6, "mass": 0.9}],
    }  # fmt: skip
    row = found[1].details["comparisons"][0]
    assert (row["as_first"], row["as_second"], row["better"]) == pytest.approx((0.4, 0.1, 0.25))


def test_equals_are_equal_without_anybody_being_asked():
    asking = judge({"a|b": 1.0, "b|a": 0.0})
    [found] = asking.score_all([group("a", "b", "a")], Allowance(1))
    assert values(found) == [0.75, 0.0, 0.75]
    assert sorted(asking._arbiter.asked) == ["a|b", "b|a"], "and the same question once"


def test_a_failed_question_leaves_both_responses_without_a_reward():
    outside = Failure("outside_choice", "it would say else")
    [found] = judge(ANSWERS | {"b|a": outside}).score_all([group("a", "b", "c")], Allowance(1))
    assert found[:2] == [outside, outside], "a mean over other opponents than those of the rest would not compare"
    assert found[2].value == pytest.approx((0.1 + 0.5) / 2)


def test_in_one_order_half_is_asked_and_the_order_hangs_on_seed_and_prompt():
    asked = []
    for seed in range(16):
        asking = judge(ANSWERS, orders="one", seed=seed)
        [found] = asking.score_all([group("a", "b")], Allowance(1))
        [text] = asking._arbiter.asked
        asked.append(text)
        assert values(found) == pytest.approx([0.9, 0.1] if text == "a|b" else [0.6, 0.4])
    assert set(asked) == {"a|b", "b|a"}


def test_a_grade_is_the_expected_worth_of_the_options():
    drawn = Drawn("kind", "Be kind.")
    [found] = judge({"a|Be kind.": 0.25, "b|Be kind.": 1.0}, GRADE, lambda prompt: drawn).score_all(
        [group("a", "b")], Allowance(1)
    )
    assert values(found) == [0.25, 1.0]
    assert found[0].details["principle"] == "kind" and found[0].details["probabilities"] == [0.25, 0.75]


def test_a_lone_response_compares_with_nothing():
    assert judge(ANSWERS).score_all([group("a")], Allowance(1)) == [[None]]


def test_a_column_that_the_template_shows_and_the_row_lacks():
    template = Template("t@1", ({"role": "user", "content": "|{first}{second}{topic}"},), ("A", "B"), ())
    asking = judge({"abX": 0.5, "baX": 0.5}, template)
    [[failure, _], whole] = asking.score_all([group("a", "b", answer="1"), group("a", "b", topic="X")], Allowance(1))
    assert values(whole) == [0.5, 0.5], "another row of the same call has it"
    assert failure == Failure("missing_column", "the template t@1 shows {topic}, and the row has no such column")


def test_groups_go_together_until_the_questions_of_a_call_are_full():
    asking = judge(ANSWERS)
    assert asking.takes([group("a", "b")] * 9) == 4, "2 questions each, 8 at once"
    assert asking.takes([group("a", "b", "c", "d")] * 3) == 1, "12 questions: a group is never divided"


def test_a_mix_keeps_the_numbers_apart_from_how_they_came_about():
    asking = judge(ANSWERS, weight=2.0)
    one = group("a", "b")
    [said] = asking.score_all([one], Allowance(1))
    first = Mix([asking]).outcomes(one, {"judge": said})[0]
    assert (first.value, first.components) == (pytest.approx(1.5), {"judge": pytest.approx(0.75)})
    assert json.loads(first.details)["judge"]["template"] == "t@1"
    assert isinstance(first, Score)


def test_a_template_that_shows_no_principle_is_told(tmp_path):
    settings = {"kind": "judge", "by": {"kind": "engine", "path": "x"}, "constitution": str(tmp_path / "ours.yaml")}
    with pytest.raises(RewardUnusable, match=r"reward `judge`: the template compare@\d has no \{principle\}, so that"):
        template_of(JudgeReward.model_validate(settings))
    assert template_of(JudgeReward.model_validate(settings | {"template": "compare_by_principle"})).compares
