"""Completions labelled good or bad, as pairs within a prompt; and prompts that stay on one side of the split."""

import json
import logging

import pytest

from rlpipe.data.labelled import paired
from rlpipe.data.records import DataError, Format, Record
from rlpipe.data.source import load_preferences
from rlpipe.recipe.data import HeldOut, RecordsData


def labelled(*rows):
    return [
        Record({"prompt": p, "completion": c, "label": label}, f"d.jsonl, line {n}")
        for n, (p, c, label) in enumerate(rows, 1)
    ]


def sides(records):
    return [(r.fields["prompt"], r.fields["chosen"], r.fields["rejected"]) for r in records]


def load(tmp_path, rows, count):
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_preferences(RecordsData(kind="records", path=str(file), chat=False, heldout=HeldOut(count=count)))


def test_good_completions_go_against_bad_ones_of_the_same_prompt():
    rows = labelled(("p", "a", True), ("q", "b", False), ("p", "c", False), ("q", "d", True), ("p", "e", False))
    pairs = paired(rows, chat=False)
    assert sides(pairs) == [("p", "a", "c"), ("p", "a", "e"), ("q", "d", "b")]
    assert [pair.origin for pair in pairs] == [
        "d.jsonl, line 1 against line 3", "d.jsonl, line 1 against line 5", "d.jsonl, line 4 against line 2",
    ]  # fmt: skip
    assert "label" not in pairs[0].fields


def test_every_completion_is_used_and_their_number_does_not_explode():
    rows = labelled(*[("p", f"g{i}", True) for i in range(3)], *[("p", f"b{i}", False) for i in range(40)])
    pairs = sides(paired(rows, chat=False))
    assert len(pairs) == 40 and {chosen for _, chosen, _ in pairs} == {"g0", "g1", "g2"}
    assert {rejected for *_, rejected in pairs} == {f"b{i}" for i in range(40)}


def test_prompts_with_one_kind_of_completion_are_counted(caplog):
    rows = labelled(("p", "a", True), ("p", "b", True), ("q", "c", False), ("r", "d", 1), ("r", "e", 0))
    with caplog.at_level(logging.WARNING, "rlpipe"):
        assert sides(paired(rows, chat=False)) == [("r", "d", "e")]
    assert "2 of 3 prompts have only good or only bad completions" in caplog.text


@pytest.mark.parametrize(("good", "bad"), [(True, False), (1, 0), ("true", "False")])
def test_labels_as_json_and_csv_have_them(good, bad):
    assert sides(paired(labelled(("p", "a", bad), ("p", "b", good)), chat=False)) == [("p", "b", "a")]


@pytest.mark.parametrize("label", [0.5, "good", 2, []])
def test_a_label_that_is_neither_is_an_error(label):
    with pytest.raises(DataError, match=r"d.jsonl, line 2: field `label` is .*; expected true or false"):
        paired(labelled(("p", "a", True), ("p", "b", label)), chat=False)


def test_a_missing_completion_is_named():
    with pytest.raises(DataError, match="line 1: field `completion` is missing; every record needs prompt, completion"):
        paired([Record({"prompt": "p", "label": True}, "d.jsonl, line 1")], chat=False)


def test_no_prompt_is_trained_on_and_held_out(tmp_path, caplog):
    """Prompt p has three pairs, of which two are held out; its third is not trained on."""
    rows = [{"prompt": "p", "completion": c, "label": c == "g"} for c in ("g", "b1", "b2", "b3")]
    rows += [{"prompt": "q", "completion": c, "label": c == "g"} for c in ("g", "b")]
    with caplog.at_level(logging.WARNING, "rlpipe"):
        records = load(tmp_path, rows, count=2)
    assert records.format is Format.PREFERENCE
    assert [r.fields["rejected"] for r in records.heldout] == ["b1", "b2"]
    assert sides(records.train) == [("q", "g", "b")]
    assert "1 training pairs answer a prompt that is held out; they are left out" in caplog.text


def test_pairs_that_come_as_pairs_are_split_by_prompt_too(tmp_path):
    rows = [{"prompt": p, "chosen": "a", "rejected": r} for p, r in [("p", "b"), ("q", "b"), ("p", "c")]]
    assert sides(load(tmp_path, rows, count=1).train) == [("q", "a", "b")]
    with pytest.raises(DataError, match="every training pair answers a prompt that is held out"):
        load(tmp_path, rows[::2], count=1)
