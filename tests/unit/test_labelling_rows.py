"""From judged groups to rows that DPO, KTO and SFT take: literal rows."""

import json
import math
from dataclasses import replace

import pytest
import yaml
from sample_groups import make_group

from rlpipe.data.flow import Failure, Score
from rlpipe.data.near_duplicates import near_duplicates, overlaps
from rlpipe.data.source import load_judged, load_preferences, load_records
from rlpipe.pipelines.labelling.card import card
from rlpipe.pipelines.labelling.findings import find
from rlpipe.pipelines.labelling.preferences import Maker, asked, compared
from rlpipe.pipelines.labelling.writing import write
from rlpipe.recipe.data import HeldOut, RecordsData
from rlpipe.recipe.labelling import LabelRecipe, Labels
from rlpipe.rewards.judging.usage import Usage


def group(said, messages=None, **columns):
    """`said`: the reward of each completion, or why there is none."""
    made = make_group(said, columns)
    outcomes = tuple(Failure("x", value) if isinstance(value, str) else score(value) for value in said.values())
    return replace(made, outcomes=outcomes, prompt=replace(made.prompt, text="rendered", messages=messages))


def score(value):
    return value if isinstance(value, Score) else Score(value, {"r": value})


def judged(better, other, gold, **row):
    """A response that a judge compared with one other."""
    rows = [{"other": other, "better": better, **row}]
    details = {"judge": {"judge": "who", "template": "t@1", "seed": 0, "comparisons": rows}}
    return Score(better, {"judge": better, "exact": gold}, json.dumps(details))


def maker(judge=None, system=None, **settings):
    return Maker(Labels(**settings), judge, system)


def made_of(groups, **settings):
    making = maker(**settings)
    making.look_at(groups)
    return [row for each in groups for row in making.preferences(each)]


def pairs(made):
    return [(row["chosen"], row["rejected"], row["margin"], row["tie"]) for row in made]


def test_the_best_against_the_worst():
    one = group({"a": 0.2, "b": 0.9, "c": 0.5}, answer="b")
    [row] = maker().preferences(one)
    assert row["prompt"] == "rendered" and row["answer"] == "b"
    assert pairs([row]) == [("b", "a", pytest.approx(0.7), False)]
    assert (row["chosen_score"], row["rejected_score"]) == (0.9, 0.2)


def test_all_pairs_and_what_counts_as_a_tie():
    one = group({"a": 0.2, "b": 0.9, "c": 0.25})
    assert [p[:2] for p in pairs(maker(pairs="all").preferences(one))] == [("b", "a"), ("c", "a"), ("b", "c")]
    assert [p[:2] for p in pairs(maker(pairs="all", tie_within=0.1).preferences(one))] == [("b", "a"), ("b", "c")]
    kept = pairs(maker(pairs="all", tie_within=0.1, ties="keep").preferences(one))
    assert kept[1] == ("c", "a", 0.0, True)


def test_where_all_are_worth_the_same_there_is_a_tie_or_nothing():
    one = group({"a": 0.5, "b": 0.5})
    assert pairs(maker().preferences(one)) == []
    assert pairs(maker(ties="keep").preferences(one)) == [("a", "b", 0.0, True)]


def test_what_could_not_be_judged_is_in_no_row():
    one = group({"a": 0.2, "b": "broken", "c": 0.9})
    assert pairs(maker(pairs="all").preferences(one)) == [("c", "a", pytest.approx(0.7), False)]
    assert {row["completion"] for row in maker().unpaired(one)} == {"a", "c"}
    assert list(maker().preferences(group({"a": "broken", "b": 0.3}))) == []


def test_a_response_without_text_is_in_no_row_and_is_counted():
    one = group({" ": 0.1, "a": 0.2, "b": 0.9})
    assert pairs(maker().preferences(one)) == [("b", "a", pytest.approx(0.7), False)]
    assert {row["completion"] for row in maker().unpaired(one)} == {"a", "b"}
    assert list(maker().best(group({"": 0.9}))) == []
    assert find([one], None, None, 0.0, asked=1).empty == 1


def test_single_responses_are_good_or_bad_beside_the_others_or_by_a_mark():
    one = group({"a": 0.0, "b": 1.0, "c": 0.5})
    labels = {row["completion"]: row["label"] for row in maker(tie_within=0.1).unpaired(one)}
    assert labels == {"a": False, "b": True}, "c is as good as the mean"
    labels = {row["completion"]: row["label"] for row in maker(good_at=0.5).unpaired(one)}
    assert labels == {"a": False, "b": True, "c": True}


def test_the_best_response_and_rejection_sampling():
    one = group({"a": 0.2, "b": 0.9})
    assert [row["completion"] for row in maker().best(one)] == ["b"]
    assert list(maker(accept_at=0.95).best(one)) == []


def test_a_conversation_stays_one_without_the_recipe_s_system_message():
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    one, plain = (group({"a": 0.2, "b": 0.9}, messages=said) for said in (turns, turns[1:]))
    [row] = made_of([one], system="S")
    assert (row["prompt"], row["chosen"]) == ("U", "b"), "one message of the user is text"
    rows = made_of([one, plain])
    assert [row["prompt"] for row in rows] == [turns, turns[1:]], "and messages where another one is a conversation"
    assert {row["chosen"][0]["content"] for row in rows} == {"b"}
    assert asked(group({"a": 0.2}).prompt, None) == "rendered"


def test_a_pair_says_how_probable_the_judge_found_it_and_where_from():
    both = group({"a": judged(0.8, 1, 1.0, as_first=0.9, as_second=0.7), "b": judged(0.2, 0, 0.0)})
    [row] = maker("judge").preferences(both)
    assert row["probability"] == 0.8
    source = json.loads(row["provenance"])
    assert source["judge"] == {"judge": "who", "template": "t@1", "seed": 0} and source["orders"] == [0.9, 0.7]
    [found] = compared(both, "judge", "exact")
    assert (found.preference, found.gold, found.first_place) == (0.8, 1.0, (0.9, 0.7))


def test_the_first_of_those_that_are_read_may_be_known_to_be_the_best():
    found = list(compared(group({"a": 0.2, "bb": 0.9, "c": 0.3}), None, "first"))
    assert [(c.preference, c.gold, c.longer) for c in found] == [(0.0, 1.0, -1), (0.0, 1.0, 0), (1.0, None, 1)]


def test_findings_count_each_comparison_once():
    row = {"as_first": 0.9, "as_second": 0.7, "mass": 0.5}
    one = group({"a": judged(0.8, 1, 1.0, **row), "b": judged(0.2, 0, 0.0, **row)})
    two = group({"a": judged(0.8, 1, 1.0, **row), "b": "broken"})
    found = find([one, two], "judge", "exact", 0.0, asked=5)
    assert (found.prompts, found.left_out, found.responses, found.asked_twice) == (2, 3, 4, 2)
    assert found.failures == {"x": 1} and (found.cut, found.empty) == (0, 0)
    assert found.metrics["agreement/accuracy"] == 1.0 and found.metrics["mass"] == 0.5
    assert found.metrics["position_bias"] == pytest.approx(0.2)


def test_nothing_is_said_that_is_not_known():
    assert set(find([group({"a": 0.2, "b": 0.9})], None, None, 0.0, asked=1).metrics) == {"ties"}


def test_texts_that_say_nearly_the_same():
    long = "the quick brown fox jumps over the lazy dog and runs away into the dark green forest at night"
    texts = [long, "something else entirely, of other words", long.replace("night", "dawn"), long.upper()]
    assert near_duplicates(texts) == [(2, 0), (3, 0)]
    assert overlaps([long, "nothing alike here at all"], ["a", "b", long]) == [(0, 2)]
    assert near_duplicates(["27+58", "28+57", "27+58"]) == [(2, 0)], "short ones resemble themselves alone"


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_other_tools_open_what_is_written_by_its_card(tmp_path, format):
    import datasets

    recipe = LabelRecipe.model_validate(
        {
            "task": "label", "model": {"scratch": "qwen2"}, "data": {"kind": "arithmetic"},
            "rewards": {"mix": [{"kind": "exact"}]}, "labels": {"format": format},
        }
    )  # fmt: skip
    parts = {"train": [group({"a": 0.0, "b": 1.0}, answer="b"), group({"c": 1.0, "d": 1.0})], "heldout": []}
    found = {"train": find(parts["train"], None, None, 0.0, asked=4)}
    said = write(tmp_path / "labels", recipe, parts, maker(), found, {})
    assert said["train"] == "1 preferences, 2 unpaired, 2 best" and said["heldout"] == "nothing to learn from"
    assert "| left out | 2 | prompts of which no response" in (tmp_path / "labels/README.md").read_text()
    head = yaml.safe_load((tmp_path / "labels/README.md").read_text().split("---")[1])
    assert [config["config_name"] for config in head["configs"]] == ["preferences", "unpaired", "best"]
    table = datasets.load_dataset(str(tmp_path / "labels"), "preferences", split="train", cache_dir=str(tmp_path / "c"))
    assert table["chosen"] == ["b"] and table["margin"] == [1.0]
    assert not math.isnan(table["chosen_score"][0])


def test_the_card_has_what_judges_took_where_they_took_something():
    recipe = LabelRecipe.model_validate(
        {
            "task": "label", "model": {"scratch": "qwen2"}, "data": {"kind": "arithmetic"},
            "rewards": {"mix": [{"kind": "exact"}]},
        }
    )  # fmt: skip
    found = {"train": find([group({"a": 1.0})], None, None, 0.0, asked=1)}
    took = Usage(requests=1200, retries=3, prompt_tokens=45000, completion_tokens=1197, unmetered=2, cost=0.115)
    said = card(recipe, {}, found, [], {"judge": took})
    assert "| judge | 1,200 | 3 | 45,000 | 1,197 | 0.115 |" in said
    assert "2 answers of `judge` came without counts of tokens" in said
    assert "What the judges took" not in card(recipe, {}, found, [], {})


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_training_reads_what_is_written(tmp_path, format):
    recipe = LabelRecipe.model_validate(
        {
            "task": "label", "model": {"scratch": "qwen2"}, "data": {"kind": "arithmetic"},
            "rewards": {"mix": [{"kind": "exact"}]}, "labels": {"format": format},
        }
    )  # fmt: skip
    asked_here, asked_there = ([{"role": "user", "content": text}] for text in ("here", "there"))
    said = {"a": 0.0, "b": 1.0}
    parts = {"train": [group(said, asked_here, answer="b")], "heldout": [group(said, asked_there, answer="b")]}
    found = {part: find(groups, None, None, 0.0, asked=1) for part, groups in parts.items()}
    write(tmp_path / "labels", recipe, parts, maker(), found, {})

    def data(kind):
        return RecordsData(kind="records", path=str(tmp_path / "labels" / kind), heldout=HeldOut(split="heldout"))

    pairs_read = load_preferences(data("preferences"))
    assert [(r.fields["prompt"], r.fields["chosen"], r.fields["rejected"]) for r in pairs_read.train] == [
        ("here", "b", "a")
    ]
    assert [r.fields["prompt"] for r in pairs_read.heldout] == ["there"]
    single = load_judged(data("unpaired"))
    assert {r.fields["completion"]: r.fields["label"] for r in single.train} == {"a": False, "b": True}
    best = load_records(data("best"), only_prompts=False)
    assert [(r.fields["completion"], r.fields["answer"]) for r in best.train] == [("b", "b")]
