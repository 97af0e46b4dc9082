"""Constitutions: what is wrong with a file is told line by line, and drawing moves no prompt without need."""

import json
from collections import Counter

import numpy as np
import pytest

from rlpipe.data.flow import Prompt
from rlpipe.pipelines.judges import drawer
from rlpipe.recipe import shipped
from rlpipe.recipe.constitution import Constitution, Principle, draw, ranked, read
from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.judge import JudgeReward

KEYS = [f"prompt {i}" for i in range(4000)]


def principle(name, **more):
    words = {"critique": f"{name}?", "revision": f"{name}!", "preference": f"which {name}?"}
    return Principle(**({"id": name} | words | more))


def principles(names, **weights):
    return [principle(name, weight=weights.get(name, 1.0)) for name in names]


def drawn(found, seed=0):
    return {key: draw(found, key, seed).id for key in KEYS}


def test_adding_a_principle_moves_its_share_of_the_prompts_and_all_to_itself():
    before, after = drawn(principles("abcd")), drawn(principles("abcde"))
    moved = [key for key in KEYS if before[key] != after[key]]
    assert {after[key] for key in moved} == {"e"}
    assert len(moved) / len(KEYS) == pytest.approx(1 / 5, abs=0.02)


def test_removing_a_principle_moves_its_own_prompts_only():
    before, after = drawn(principles("abcde")), drawn(principles("abde"))
    assert all((before[key] == "c") == (before[key] != after[key]) for key in KEYS)


def test_mending_words_moves_nothing_and_a_heavier_principle_only_wins():
    before = drawn(principles("abcd"))
    assert drawn([principle(name, critique="mended", tags=["new"]) for name in "abcd"]) == before
    after = drawn(principles("abcd", b=3.0))
    assert {after[key] for key in KEYS if before[key] != after[key]} == {"b"}
    assert Counter(after.values())["b"] / len(KEYS) == pytest.approx(1 / 2, abs=0.025)


def test_each_is_drawn_by_its_weight():
    counts = Counter(drawn(principles("abcd", b=2.0, d=4.0)).values())
    shares = {name: counts[name] / len(KEYS) for name in "abcd"}
    assert shares == pytest.approx({"a": 1 / 8, "b": 2 / 8, "c": 1 / 8, "d": 4 / 8}, abs=0.02)


def test_the_order_of_the_file_means_nothing():
    assert drawn(principles("dbca")) == drawn(principles("abcd"))


def test_another_seed_draws_independently():
    one, other = drawn(principles("abcd"), seed=1), drawn(principles("abcd"), seed=2)
    assert sum(one[key] == other[key] for key in KEYS) / len(KEYS) == pytest.approx(1 / 4, abs=0.03)


def test_draws_are_the_same_in_every_process():
    """Python's own hash of texts is not; these were written down."""
    found = principles(["kind", "true", "brief"])
    said = [draw(found, key, 7).id for key in ("one", "two", "three", "four", "five")]
    assert said == ["brief", "true", "brief", "kind", "brief"]


def test_a_ranking_is_drawing_without_replacement():
    found = principles("abcd", c=2.0)
    for key in KEYS[:200]:
        left = list(found)
        for expected in ranked(found, key, 3):
            assert draw(left, key, 3) == expected
            left.remove(expected)


def write(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return file


GOOD = """\
name: mine
version: 2
principles:
  - id: one
    critique: c
    revision: r
    preference: p
"""


def test_a_constitution_is_read(tmp_path):
    found = read(write(tmp_path, GOOD + "    tags: [honesty]\n    weight: 2\n"))
    assert found == Constitution(
        name="mine",
        version=2,
        principles=[Principle(id="one", critique="c", revision="r", preference="p", tags=["honesty"], weight=2)],
    )
    assert found.origin == {"constitution": "mine", "version": 2, "digest": found.digest}


def test_the_digest_is_of_the_content_alone(tmp_path):
    second = "  - {id: two, critique: c, revision: r, preference: p}\n"
    both = read(write(tmp_path, GOOD + second)).digest
    head, _, first = GOOD.partition("principles:\n")
    assert read(write(tmp_path, f"# words\n{head}principles:\n{second}{first}")).digest == both
    assert read(write(tmp_path, GOOD + second.replace("r,", "r2,"))).digest != both


MISTAKES = """\
name: my own
version: 1.5
principles:
  - id: one
    critic: "x"
    revision: " "
    preference: 3
    weight: 0
  - id: two
    critique: c
    revision: r
    preference: p
    tags: honesty
"""


def test_every_mistake_is_told_with_line_and_key(tmp_path):
    with pytest.raises(RecipeError) as error:
        read(write(tmp_path, MISTAKES))
    assert [line.partition("mine.yaml:")[2] for line in str(error.value).splitlines()] == [
        "1: name: `my own` is no id; expected letters, digits, `-`, `_`, `.`, and no mark first",
        "2: version: expected a whole number above 0, or text, found 1.5",
        "4: principles.0.critique: missing; expected text (What to look for in an answer)",
        "5: principles.0.critic: `critic` is not a key here; did you mean `critique`?",
        "6: principles.0.revision: is empty; say it in words",
        "7: principles.0.preference: expected text, found 3",
        "8: principles.0.weight: expected a number above 0, found 0",
        "13: principles.1.tags: expected a list of texts, found the text `honesty`",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1: a constitution is a mapping with the keys `name`, `version` and `principles`; this file"),
        (GOOD + GOOD[GOOD.index("  - id") :], "8: principles.1.id=one is the id of principles.0, too; change one"),
        (GOOD + "name: other\n", "8: name: this key stands twice; the first is at "),
        (
            "name: x\nversion: 1\nprinciples: [3]\n",
            "3: principles.0: expected a section with `id`, `critique`, `revision`, `preference`, found 3",
        ),
        ("principels: []\n", "1: principels: `principels` is not a key here; did you mean `principles`?"),
        ("name: [\n", "2: not valid YAML: "),
    ],
)
def test_what_is_no_constitution(tmp_path, text, expected):
    with pytest.raises(RecipeError) as error:
        read(write(tmp_path, text))
    assert f"mine.yaml:{expected}" in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match=r"none.yaml:1: cannot be read as text: .*No such file"):
        read(tmp_path / "none.yaml")


def test_principles_about_something(tmp_path):
    found = Constitution(
        name="c",
        version="v1",
        principles=[principle("a", tags=["x"]), principle("b", tags=["x", "y"]), principle("c")],
    )
    assert [p.id for p in found.about(["y"])] == ["b"]
    assert [p.id for p in found.about(["x", "y"])] == ["a", "b"]
    assert [p.id for p in found.about([])] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no principle of the constitution `c` has the tag `z`; its tags are x, y"):
        found.about(["x", "z"])  # fmt: skip


def test_the_shipped_one_has_what_it_should():
    found = read(shipped.folder() / "constitutional" / "constitution.yaml")
    assert len(found.principles) == 14
    assert all(len(found.about([tag])) >= 4 for tag in ("helpfulness", "honesty", "harmlessness"))
    assert len(found.about(["health", "arithmetic"])) == 2
    assert all(len(json.dumps(p.model_dump())) < 1000 for p in found.principles), "each fits a small judge's context"


def test_it_is_no_recipe():
    assert not any("constitution.yaml" in name or name.endswith("/constitution") for name in shipped.names())


def test_a_prompt_gets_the_same_principle_whatever_template_renders_it(tmp_path):
    words = "{id: %s, critique: c, revision: r, preference: %s}"
    principles = ", ".join(words % (name, name) for name in ("kind", "brief", "honest", "calm"))
    (tmp_path / "own.yaml").write_text(f"name: own\nversion: 1\nprinciples: [{principles}]\n")
    by = {"kind": "engine", "path": "m"}
    judge = JudgeReward(kind="judge", template="compare_by_principle", constitution=str(tmp_path / "own.yaml"), by=by)
    drawn = drawer(judge)
    said = [[{"role": "user", "content": f"question {i}"}] for i in range(20)]
    for messages in said:
        rendered = [f"<|{mark}|>{messages[0]['content']}" for mark in ("user", "human")]
        found = {drawn(Prompt("p", np.array([1], np.int32), text, {}, messages)).text for text in rendered}
        assert len(found) == 1
    assert len({drawn(Prompt("p", np.array([1], np.int32), "same", {}, m)).text for m in said}) > 1
