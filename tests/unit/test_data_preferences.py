"""Preferences: formats and their errors, pairs as tokens, what length alone says, and generated mistakes."""

import json
import logging

import pytest

from rlpipe.data.arithmetic import mistakes, preferences, problems
from rlpipe.data.chat import render_prompts
from rlpipe.data.preferences import Pair, encode_pairs, numbered, truncated_left, within
from rlpipe.data.records import DataError, Format
from rlpipe.data.source import load_preferences, load_records
from rlpipe.models.scratch import build_tokenizer
from rlpipe.recipe.data import ArithmeticData, HeldOut, RecordsData

ASK, GOOD, BAD = ({"role": r, "content": c} for r, c in [("user", "2+2"), ("assistant", "4"), ("assistant", "5")])


def load(tmp_path, rows, **settings):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_preferences(RecordsData(kind="records", path=str(file), heldout=HeldOut(count=1), **settings))


def other(row):
    """The same about another prompt, to be held out."""
    prompt = row.get("prompt")
    return row if prompt is None else row | {"prompt": "1+1" if isinstance(prompt, str) else [ASK | {"content": "1+1"}]}


def encoded(tmp_path, row, **settings):
    """The row's two sequences as text."""
    tokenizer = build_tokenizer()
    records = load(tmp_path, [other(row), row], **settings)
    [pair] = encode_pairs(records.train, records, tokenizer)
    return [tokenizer.decode(ids) for ids in (pair.chosen, pair.rejected)]


SAME = ["<|user|>2+2<|end|><|assistant|>4<|end|>", "<|user|>2+2<|end|><|assistant|>5<|end|>"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2", "chosen": "4", "rejected": "5"},
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    ],
)
def test_every_form_of_a_conversation_gives_the_same_tokens(tmp_path, row):
    assert encoded(tmp_path, row) == SAME


def test_the_system_message_stands_first(tmp_path):
    for row in ({"prompt": "2+2", "chosen": "4", "rejected": "5"}, {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}):
        assert encoded(tmp_path, row, system="Be brief.") == ["<|system|>Be brief.<|end|>" + text for text in SAME]


@pytest.mark.parametrize(
    "row", [{"prompt": "2+2=", "chosen": "4", "rejected": "5"}, {"chosen": "2+2=4", "rejected": "2+2=5"}]
)
def test_plain_text_ends_with_the_end_of_sequence_token(tmp_path, row):
    assert encoded(tmp_path, row, chat=False) == ["2+2=4<|end|>", "2+2=5<|end|>"]


def test_a_pair_is_what_a_policy_would_have_written(tmp_path):
    """The prompt as rollouts render it, the answer, its end; nothing that a template writes after that."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("{% endgeneration %}", "{% endgeneration %}\n")
    row = {"prompt": "2+2", "chosen": "4", "rejected": "5"}
    records = load(tmp_path, [other(row), row])
    [pair] = encode_pairs(records.train, records, tokenizer)
    file = RecordsData(kind="records", path=str(tmp_path / "pairs.jsonl"), heldout=HeldOut(count=1))
    [prompt], _ = render_prompts(load_records(file, only_prompts=True), tokenizer)
    assert pair.chosen == [*prompt.tokens, *tokenizer("4")["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "a"}, r"line 2: field `rejected` is missing; every record needs prompt, chosen and"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, r"line 2: field `rejected` is empty"),
        ({"prompt": "q", "chosen": 4, "rejected": "b"}, r"line 2: field `chosen` is int 4; expected text or a list"),
        ({"prompt": "q", "chosen": [GOOD], "rejected": "b"}, r"`chosen` must be text where `prompt` is text"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "much"}, r"line 2: field `margin` is str 'much'"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": True}, r"`margin` is bool True; expected a finite"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": float("inf")}, r"`margin` is float inf"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        load(tmp_path, [{"prompt": "q", "chosen": "a", "rejected": "b"}, row])


def test_a_whole_conversation_as_text_needs_no_template(tmp_path):
    rows = [{"chosen": "q a", "rejected": "q b"}] * 2
    assert load(tmp_path, rows, chat=False).format is Format.WHOLE_PREFERENCE
    with pytest.raises(DataError, match=r"line 1: field `chosen` is text without a prompt.*set data.chat=false"):
        load(tmp_path, rows)


def test_other_records_are_told_what_a_preference_is(tmp_path):
    with pytest.raises(DataError, match=r"has the fields chosen and rejected.*\['better', 'worse'\].*data.columns"):
        load(tmp_path, [{"better": "a", "worse": "b"}] * 2)


def test_margins_are_numbers_also_from_csv(tmp_path):
    (tmp_path / "d.csv").write_text("prompt,chosen,rejected,margin\np,a,b,1.5\nq,a,b,2\nq,a,b,0.5\n")
    data = RecordsData(kind="records", path=str(tmp_path / "d.csv"), heldout=HeldOut(count=1))
    records = load_preferences(data)
    assert [pair.margin for pair in encode_pairs(records.train, records, build_tokenizer())] == [2.0, 0.5]


def test_what_teaches_nothing_or_is_too_long_is_left_out_and_counted(tmp_path, caplog):
    rows = [{"prompt": "q", "chosen": "a", "rejected": b} for b in ("b", "b", "a", "b" * 40)]
    records = load(tmp_path, [other(rows[0]), *rows[1:]])
    with caplog.at_level(logging.WARNING, "rlpipe"):
        pairs = within(encode_pairs(records.train, records, build_tokenizer()), 20)
    assert [pair.origin[-6:] for pair in pairs] == ["line 2"]
    assert "1 of 3 pairs prefer a response to itself; they are left out (first: " in caplog.text
    assert "1 of 2 pairs are longer than 20 tokens" in caplog.text
    with pytest.raises(DataError, match=r"All 1 pairs are longer than 2 tokens. Raise train.max_length"):
        within(pairs, 2)


def test_text_that_was_cut_off_gets_no_end(tmp_path):
    row = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
    assert encoded(tmp_path, row, chat=False, add_eos=False) == ["2+2=4", "2+2=5"]


def test_long_pairs_lose_the_beginning_that_both_sides_share(caplog):
    """Of 12 and 10 tokens, 8 are kept of the longer one: the same 4 go from both, after the beginning of sequence."""
    shared = [1, *range(20, 27)]
    long, short = Pair([*shared, 5, 6, 7, 8], [*shared, 9, 9], 0.0, "a", "a"), Pair([1, 2], [1, 3], 0.0, "b", "b")
    early = Pair([1, 2, *range(30, 40)], [1, 3, *range(30, 40)], 0.0, "c", "c")
    with caplog.at_level(logging.WARNING, "rlpipe"):
        cut = truncated_left([long, short, early], 8, bos=1)
    assert (cut[0].chosen, cut[0].rejected) == ([1, 24, 25, 26, 5, 6, 7, 8], [1, 24, 25, 26, 9, 9])
    assert cut[1:] == [short, early], "what differs is never cut; `within` leaves such a pair out"
    assert "1 of 3 pairs lost their first tokens to fit into 8" in caplog.text
    assert truncated_left([long], 8, bos=None)[0].chosen == [23, 24, 25, 26, 5, 6, 7, 8]


def test_pairs_of_one_prompt_are_told(tmp_path):
    rows = [{"prompt": p, "chosen": "a", "rejected": r} for p, r in [("x", "b"), ("p", "b"), ("q", "b"), ("p", "c")]]
    records = load(tmp_path, rows)
    pairs = encode_pairs(records.train, records, build_tokenizer())
    assert numbered(pair.prompt for pair in pairs) == [0, 1, 0]
    whole = load(tmp_path, [{"chosen": "q a", "rejected": "q b"}] * 3, chat=False)
    pairs = encode_pairs(whole.train, whole, build_tokenizer())
    assert numbered(pair.prompt for pair in pairs) == [0, 1], "nobody knows their prompts"


def test_mistakes_are_those_of_a_small_model():
    assert mistakes((58, 67)) == {"carry": [115], "one": [124, 126], "ten": [115, 135], "swap": [215, 152]}
    assert mistakes((0, 0)) == {"one": [1], "ten": [10]}
    assert mistakes((2, 8)) == {"one": [9, 11], "ten": [0, 20]}  # what the leftmost column carries is never forgotten


@pytest.mark.parametrize("settings", [{}, {"operands": 3, "largest": 30}, {"largest": 9, "heldout": 10}])
def test_generated_pairs_are_right_and_wrong_over_the_task_s_own_problems(settings):
    data = ArithmeticData(kind="arithmetic", **settings)
    for made, sums in zip(preferences(data), problems(data), strict=True):
        assert [r.fields["prompt"] for r in made] == [r.fields["prompt"] for r in sums]
        for record in made:
            right = sum(map(int, record.fields["prompt"].split("+")))
            assert int(record.fields["chosen"]) == right != int(record.fields["rejected"]) >= 0
    kinds = {record.fields["mistake"] for record in preferences(data)[0]}
    assert kinds == {"carry", "one", "ten", "swap"} or settings.get("largest") == 9


def test_generated_pairs_are_the_same_for_everyone():
    train, _ = preferences(ArithmeticData(kind="arithmetic"))
    assert train[0].fields == {
        "prompt": "62+27", "chosen": "89", "rejected": "90", "answer": "89", "mistake": "one",
    }  # fmt: skip
