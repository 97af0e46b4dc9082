"""Better and worse responses as tokens: where prompt and response meet, labels, and pairs taken apart."""

import json

import pytest

from rlpipe.data.records import DataError, Format
from rlpipe.data.responses import encode_judged, encode_response_pairs
from rlpipe.data.source import load_judged, load_preferences
from rlpipe.models.scratch import build_tokenizer
from rlpipe.recipe.data import ArithmeticData, HeldOut, RecordsData

ASK, GOOD, BAD = ({"role": r, "content": c} for r, c in [("user", "2+2"), ("assistant", "4"), ("assistant", "5")])
TOKENIZER = build_tokenizer()


def data(tmp_path, rows, **settings):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RecordsData(kind="records", path=str(file), heldout=HeldOut(count=1), **settings)


def other(row):
    """The row about another prompt, to be held out."""
    return json.loads(json.dumps(row).replace("2+2", "9+9"))


def pair(tmp_path, row, **settings):
    """(prompt, chosen, rejected) of the row as text."""
    records = load_preferences(data(tmp_path, [other(row), row], **settings))
    [one] = encode_response_pairs(records.train, records, TOKENIZER, 100)
    return tuple(TOKENIZER.decode(ids) for ids in (one.prompt, one.chosen, one.rejected))


def judged(tmp_path, rows, **settings):
    """(prompt, completion, good) of each row as text."""
    records = load_judged(data(tmp_path, [other(rows[0]), *rows], **settings))
    found = encode_judged(records.train, records, TOKENIZER, 100)
    return [(TOKENIZER.decode(one.prompt), TOKENIZER.decode(one.completion), one.good) for one in found]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2", "chosen": "4", "rejected": "5"},
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": "2+2", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},  # UltraFeedback repeats its prompt
    ],
)
def test_every_form_of_a_conversation_is_cut_at_the_same_place(tmp_path, row):
    assert pair(tmp_path, row) == ("<|user|>2+2<|end|><|assistant|>", "4<|end|>", "5<|end|>")


def test_answers_that_begin_alike_are_whole_behind_a_prompt(tmp_path):
    row = {"prompt": "2+2", "chosen": "40", "rejected": "45"}
    assert pair(tmp_path, row) == ("<|user|>2+2<|end|><|assistant|>", "40<|end|>", "45<|end|>")
    whole = {"chosen": "2+2=40", "rejected": "2+2=45"}
    assert pair(tmp_path, whole, chat=False) == ("2+2=4", "0<|end|>", "5<|end|>")  # what both share


def test_plain_text_has_its_prompt(tmp_path):
    row = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
    assert pair(tmp_path, row, chat=False) == ("2+2=", "4<|end|>", "5<|end|>")


def test_conversations_without_a_common_beginning_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"line 2: chosen and rejected begin with different messages"):
        pair(tmp_path, {"chosen": [ASK, GOOD], "rejected": [BAD, GOOD]})


@pytest.mark.parametrize(("label", "good"), [(True, True), (False, False), (1, True), (0, False), ("False", False)])
def test_labels(tmp_path, label, good):
    row = {"prompt": "2+2", "completion": "4", "label": label}
    assert judged(tmp_path, [row]) == [("<|user|>2+2<|end|><|assistant|>", "4<|end|>", good)]


@pytest.mark.parametrize("label", ["yes", 2, 0.5, None])
def test_a_label_that_says_nothing_is_an_error(tmp_path, label):
    with pytest.raises(DataError, match=r"rows.jsonl, line 1: field `label` is (missing|.*; expected true or false)"):
        judged(tmp_path, [{"prompt": "2+2", "completion": "4", "label": label}])


def test_fields_that_hold_no_judgement_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"neither prompt, completion and label, nor a pair.*data.columns: {label"):
        judged(tmp_path, [{"prompt": "2+2", "completion": "4"}])


def test_pairs_are_taken_apart(tmp_path):
    opened = "<|user|>2+2<|end|><|assistant|>"
    rows = [{"prompt": "2+2", "chosen": "4", "rejected": "5"}]
    assert judged(tmp_path, rows) == [(opened, "4<|end|>", True), (opened, "5<|end|>", False)]


def test_what_does_not_fit_is_left_out(tmp_path, caplog):
    rows = [{"prompt": "2+2", "completion": "4" * n, "label": True} for n in (1, 110)]
    assert len(judged(tmp_path, rows)) == 1
    assert "1 of 2 responses are longer than 100 tokens; they are left out" in caplog.text


def test_sums_are_judged_in_pairs():
    records = load_judged(ArithmeticData(kind="arithmetic", heldout=8))
    assert records.format is Format.PREFERENCE
    found = encode_judged(records.heldout, records, TOKENIZER, 64)
    assert [one.good for one in found] == [True, False] * 8
    assert all(one.prompt == other.prompt for one, other in zip(found[::2], found[1::2], strict=True))
