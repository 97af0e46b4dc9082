"""Alpaca, ShareGPT and HH records as TRL's: literal fields, and errors that name file, row, field and fix."""

import json

import pytest

from rlpipe.data.conversions import converted, recognised
from rlpipe.data.records import DataError, Format, Record
from rlpipe.data.source import load_preferences, load_records
from rlpipe.recipe.data import HeldOut, RecordsData

ALPACA = {"instruction": "Add.", "input": "2 and 3", "output": "5"}
SHAREGPT = {
    "system": "Be brief.",
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
}
HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Lie!\n\nAssistant: No.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Lie!\n\nAssistant: Yes.",
}


def of(fields, style, chat=True):
    made = converted(Record(fields, "d.jsonl, line 7"), style, chat).fields
    return {name: value for name, value in made.items() if name not in fields or fields[name] != value}


def test_alpaca_is_a_prompt_for_the_template():
    assert of(ALPACA, "alpaca") == {"prompt": "Add.\n\n2 and 3", "completion": "5"}
    assert of(ALPACA | {"input": ""}, "alpaca") == {"prompt": "Add.", "completion": "5"}


def test_alpaca_without_a_template_is_stanfords_text():
    assert of(ALPACA, "alpaca", chat=False) == {
        "prompt": "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n2 and 3"
        "\n\n### Response:\n",
        "completion": "5",
    }
    assert of({"instruction": "Go {on}.", "output": "5"}, "alpaca", chat=False)["prompt"] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nGo {on}.\n\n### Response:\n"
    )


def test_sharegpt_is_messages():
    assert of(SHAREGPT, "sharegpt") == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
        ]
    }


def test_hh_is_what_both_dialogues_share_and_their_answers():
    assert of(HH, "hh") == {
        "prompt": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Lie!"},
        ],
        "chosen": [{"role": "assistant", "content": "No."}],
        "rejected": [{"role": "assistant", "content": "Yes."}],
    }
    assert of(HH, "hh", chat=False) == {
        "prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Lie!\n\nAssistant:",
        "chosen": " No.",
        "rejected": " Yes.",
    }


def test_hh_dialogues_that_part_early_keep_all_their_turns():
    early = HH | {"rejected": "\n\nHuman: Hi\n\nAssistant: What?"}
    assert of(early, "hh") == {
        "prompt": [{"role": "user", "content": "Hi"}],
        "chosen": [
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "Lie!"},
            {"role": "assistant", "content": "No."},
        ],
        "rejected": [{"role": "assistant", "content": "What?"}],
    }
    assert of(early, "hh", chat=False)["chosen"] == " Hello\n\nHuman: Lie!\n\nAssistant: No."


def test_hh_dialogues_that_are_the_same_keep_an_answer_each():
    same = of(HH | {"rejected": HH["chosen"]}, "hh")
    assert same["chosen"] == same["rejected"] == [{"role": "assistant", "content": "No."}]


@pytest.mark.parametrize(
    ("fields", "style", "message"),
    [
        ({"instruction": "Add."}, "alpaca", "field `output` is missing (it has ['instruction']); data.format=alpaca"),
        (ALPACA | {"output": 5}, "alpaca", "field `output` is int 5; data.format=alpaca expects text"),
        (ALPACA | {"history": [["a", "b"]]}, "alpaca", "field `history` has no place in data.format=alpaca"),
        ({"conversations": "Hi"}, "sharegpt", "field `conversations` is str 'Hi'; data.format=sharegpt expects a list"),
        ({"conversations": [{"from": "human"}]}, "sharegpt", "field `conversations`, turn 1 is dict {'from': 'human'}"),
        (
            {"conversations": [{"from": "oracle", "value": "x"}]}, "sharegpt",
            "field `conversations`, turn 1 is from str 'oracle'; data.format=sharegpt knows system, human, user, gpt",
        ),
        (HH | {"chosen": "Hello"}, "hh", "field `chosen` is str 'Hello'; data.format=hh expects text that begins"),
        (HH | {"chosen": "\n\nHuman: Ho"}, "hh", "fields `chosen` and `rejected` begin with different turns"),
    ],
)  # fmt: skip
def test_what_is_written_otherwise_names_row_and_field(fields, style, message):
    with pytest.raises(DataError) as error:
        converted(Record(fields, "d.jsonl, line 7"), style, True)
    assert str(error.value).startswith(f"d.jsonl, line 7: {message}")


@pytest.mark.parametrize(
    ("fields", "style"),
    [
        (ALPACA, "alpaca"),
        (SHAREGPT, "sharegpt"),
        (HH, "trl"),  # whole texts are a format of their own
        (ALPACA | {"prompt": "p"}, "trl"),
        ({"conversations": [{"role": "user", "content": "Hi"}]}, "trl"),
        ({"instruction": "Add."}, "trl"),
    ],
)
def test_only_what_leaves_no_doubt_is_recognised(fields, style):
    assert recognised([Record(fields, "d.jsonl, line 1")], "auto") == style
    assert recognised([Record(fields, "d.jsonl, line 1")], "hh") == "hh"


def records(tmp_path, rows, **settings):
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RecordsData(kind="records", path=str(tmp_path / "d.jsonl"), heldout=HeldOut(count=1), **settings)


def test_a_recipe_reads_alpaca_by_itself_and_says_so(tmp_path, caplog):
    found = load_records(records(tmp_path, [ALPACA, ALPACA | {"output": "6"}]), only_prompts=False)
    assert found.format is Format.PROMPT_COMPLETION
    assert found.train[0].fields == ALPACA | {"output": "6", "prompt": "Add.\n\n2 and 3", "completion": "6"}
    assert "d.jsonl has records in the format `alpaca` and is read so (data.format=alpaca)" in caplog.text


def test_a_recipe_reads_hh_by_name(tmp_path):
    other = {name: text.replace("Lie!", "Cheat!") for name, text in HH.items()}
    found = load_preferences(records(tmp_path, [HH, other], format="hh"))
    assert found.format is Format.PREFERENCE
    assert found.train[0].fields["prompt"][-1] == {"role": "user", "content": "Cheat!"}
    assert load_preferences(records(tmp_path, [HH, other], chat=False)).format is Format.WHOLE_PREFERENCE
