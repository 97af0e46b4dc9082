"""Templates: what a judge is shown, and what is refused."""

import pytest

from rlpipe.data.arithmetic import preferences
from rlpipe.data.judge_questions import questions, transcript
from rlpipe.data.judge_template import SHIPPED, Template, load
from rlpipe.data.records import DataError, Format, Record, Records
from rlpipe.recipe.data import ArithmeticData

COMPARE = "version: 3\noptions: [A, B]\nmessages: [{role: user, content: '{prompt}: {first} or {second}?'}]\n"


def write(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    return str(tmp_path / "mine.yaml")


def test_a_file_of_ones_own(tmp_path):
    template = load(write(tmp_path, COMPARE))
    assert (template.name, template.options, template.values, template.compares) == ("mine@3", ("A", "B"), (), True)
    shown = {"prompt": "27+58", "first": "85", "second": "{prompt}"}
    assert template.filled(shown) == ({"role": "user", "content": "27+58: 85 or {prompt}?"},), "not filled in twice"


def test_a_grade_is_the_worth_of_each_option():
    template = load("grade")
    assert (template.options, template.values, template.compares) == (("yes", "no"), (1.0, 0.0), False)


def test_every_shipped_one_is_whole():
    names = [path.stem for path in SHIPPED.glob("*.yaml")]
    assert sorted(names) == ["compare", "compare_by_principle", "grade", "grade_by_specification"]
    for name in names:
        template = load(name)
        assert template.marks - {"principle", "specification"} == (
            {"prompt", "first", "second"} if template.compares else {"prompt", "response"}
        )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version: 1\noptions: [A, B]\n", "expected the keys version, options and messages"),
        (COMPARE.replace("[A, B]", "[A]"), "options must be two texts"),
        (COMPARE.replace("[A, B]", "[yes, no]"), "need quotes"),
        (COMPARE.replace("[A, B]", "{'a': 1, 'b': x}"), "options must be two texts"),
        (COMPARE.replace("[A, B]", "{'a': 1, 'b': 0}"), "one is graded, and {response} stands nowhere in it"),
        (COMPARE.replace("{second}", ""), "two responses are compared, and {second} stands nowhere in it"),
        (COMPARE.replace("role: user", "who: user"), "messages must be a list of {role: ..., content: ...}"),
        ("a: [", "not YAML"),
    ],
)
def test_what_cannot_be_asked_is_told_with_the_file(tmp_path, text, says):
    with pytest.raises(DataError, match=r"mine\.yaml") as caught:
        load(write(tmp_path, text))
    assert says in str(caught.value)


def test_a_name_that_is_not_shipped():
    with pytest.raises(DataError, match="there is no file compere; shipped ones are compare, compare_by_principle"):
        load("compere")


def test_a_conversation_as_a_judge_reads_it():
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    assert transcript("27+58") == "27+58"
    assert transcript(turns[:1]) == "Hi"
    assert transcript(turns) == "user: Hi\n\nassistant: Yes?"


class TestQuestions:
    template = Template("t@1", ({"role": "user", "content": "{prompt} {first} {second}"},), ("A", "B"), ())

    def test_each_pair_in_both_orders(self):
        pair = Record({"prompt": "1+1", "chosen": "2", "rejected": "3"}, "file, line 1")
        found = questions(Records([pair], [pair], Format.PREFERENCE, True, None, True), self.template)
        asked = [(r.fields["prompt"][0]["content"], r.fields["completion"][0]["content"]) for r in found.train]
        assert asked == [("1+1 2 3", "A"), ("1+1 3 2", "B")]
        assert found.format is Format.PROMPT_COMPLETION

    def test_of_sums(self):
        data = ArithmeticData(kind="arithmetic", largest=9, heldout=4)
        pairs = Records(*preferences(data), Format.PREFERENCE, True, None, True)
        found = questions(pairs, self.template)
        assert len(found.heldout) == 2 * len(pairs.heldout)
        for record in found.heldout:
            problem, first, second = record.fields["prompt"][0]["content"].split()
            right = sum(map(int, problem.split("+")))
            assert record.fields["answer"] == ("A" if int(first) == right else "B") and right in (
                int(first),
                int(second),
            )

    def test_a_template_that_grades_asks_about_no_pairs(self):
        with pytest.raises(DataError, match="grade@1 grades single responses"):
            questions(Records([], [], Format.PREFERENCE, True, None, True), load("grade"))
