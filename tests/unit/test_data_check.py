"""`rlpipe data check`: every format, every thing that can be wrong, in literal lines."""

import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from rlpipe.cli import app
from rlpipe.data.check.inspect import Reading, inspect
from rlpipe.data.check.lengths import Lengths
from rlpipe.data.records import Format
from rlpipe.models.load import ModelError
from rlpipe.models.scratch import build_tokenizer
from rlpipe.observe.data_check import show


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, *rows):
    with open(name, "w") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def found(*rows, heldout=(), **reading):
    """(severity, title, places) of everything that is found."""
    write("d.jsonl", *rows)
    write("h.jsonl", *heldout)
    report = inspect("d.jsonl", "h.jsonl" if heldout else None, Reading(**reading))
    return [(one.severity, one.title, one.places) for one in report.findings]


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def labelled(prompt, completion, label):
    return {"prompt": prompt, "completion": completion, "label": label}


GOOD = {
    Format.PROMPT: [{"prompt": "q"}, {"prompt": "r"}],
    Format.PROMPT_COMPLETION: [{"prompt": "q", "completion": "a"}, {"prompt": "r", "completion": "b"}],
    Format.MESSAGES: [{"messages": [user("q"), said("a")]}, {"messages": [user("r"), said("b")]}],
    Format.TEXT: [{"text": "one"}, {"text": "two"}],
    Format.PREFERENCE: [pair("q", "a", "b"), pair("r", "c", "d")],
    Format.WHOLE_PREFERENCE: [{"chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]}],
    Format.LABELLED: [labelled("q", "a", True), labelled("q", "b", False)],
}


@pytest.mark.parametrize("format", GOOD)
def test_nothing_is_wrong_with_good_records(format):
    write("d.jsonl", *GOOD[format])
    for tokenizer in (None, build_tokenizer()):
        report = inspect("d.jsonl", None, Reading(tokenizer=tokenizer, max_length=20))
        assert (report.train.part.format, report.findings) == (format, [])


def test_every_kind_of_file(folder):
    rows = GOOD[Format.PROMPT_COMPLETION]
    (folder / "d.csv").write_text("prompt,completion\nq,a\nr,b\n")
    (folder / "d.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "d.parquet")
    write("d.jsonl", *rows)
    for name in ("d.csv", "d.json", "d.parquet", "d.jsonl"):
        report = inspect(name, None, Reading())
        assert (report.train.rows, report.train.part.format, report.findings) == (2, Format.PROMPT_COMPLETION, []), name


@pytest.mark.parametrize(
    ("row", "style", "format"),
    [
        ({"instruction": "q", "output": "a"}, "auto", Format.PROMPT_COMPLETION),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "auto", Format.MESSAGES),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            "hh",
            Format.PREFERENCE,
        ),
    ],
)
def test_formats_of_others(row, style, format):
    write("d.jsonl", row)
    report = inspect("d.jsonl", None, Reading(style))
    assert (report.train.part.format, report.findings) == (format, [])


def test_every_row_that_cannot_be_read_or_used_is_named():
    good, bad = GOOD[Format.PROMPT_COMPLETION]
    assert found(good, '{"prompt": ', "[1]", bad | {"completion": " "}, {"prompt": "s"}) == [
        (
            "error", "rows that cannot be read",
            ["d.jsonl, line 2: not valid JSON (Expecting value, column 11); each line must hold one JSON object.",
             "d.jsonl, line 3: expected a JSON object with fields, got list."],
        ),
        (
            "error", "records that cannot be used",
            ["d.jsonl, line 4: field `completion` is empty; remove the record or fill it.",
             "d.jsonl, line 5: field `completion` is missing; every record needs prompt and completion. It has "
             "['prompt']. If the field has another name, add `data.columns: {completion: ITS_NAME}`."],
        ),
    ]  # fmt: skip


def test_a_csv_row_with_too_many_values_does_not_end_the_reading(folder):
    (folder / "d.csv").write_text("prompt,completion\na,b\nc,d,e\nf,g\n")
    report = inspect("d.csv", None, Reading())
    assert [r.fields["prompt"] for r in report.train.good] == ["a", "f"]
    [unreadable] = report.findings
    assert unreadable.places == [
        "d.csv, line 3: 1 more values than the header has columns; quote values with commas."
    ]  # fmt: skip


def test_unknown_fields_and_empty_files():
    assert found({"q": "1", "a": "2"}) == [("error", "no known format", ["d.jsonl, line 1: fields a, q"])]
    assert found({"question": "1", "answer": "2"}, columns={"prompt": "question", "completion": "answer"}) == []
    assert found() == [("error", "no records", [])]


def test_what_stands_inside_of_a_field_is_no_record():
    write("d.jsonl", {"instruction": "Add.", "instances": [{"input": "1", "output": "2"}]})
    [unknown] = inspect("d.jsonl", None, Reading()).findings
    assert unknown.title == "no known format"
    assert unknown.fix.endswith("What stands inside of `instances` has to become records of its own first.")


def test_transcripts_that_are_read_as_plain_text():
    hh = {"chosen": "\n\nHuman: 1+1\n\nAssistant: 2", "rejected": "\n\nHuman: 1+1\n\nAssistant: 3"}
    assert found(hh) == [("warning", "texts that are transcripts of HH-RLHF", ["d.jsonl, line 1"])]
    assert found(hh, format="hh") == []
    assert found({"chosen": "1+1=2", "rejected": "1+1=3"}) == []


def test_duplicates_and_contradictions():
    assert found(pair("q", "a", "b"), pair("q", "a", "b"), pair("q", "b", "a")) == [
        ("warning", "records that contradict an earlier one", ["d.jsonl, line 3: the opposite of d.jsonl, line 1"]),
        ("warning", "records that repeat an earlier one", ["d.jsonl, line 2: as line 1"]),
    ]
    assert found(labelled("q", "a", True), labelled("q", "a", "false"), labelled("q", "a", 1)) == [
        (
            "warning", "records that contradict an earlier one",
            ["d.jsonl, line 2: the opposite of d.jsonl, line 1", "d.jsonl, line 3: the opposite of d.jsonl, line 2"],
        ),
        ("warning", "records that repeat an earlier one", ["d.jsonl, line 3: as line 1"]),
    ]  # fmt: skip


def test_leaks_into_the_held_out_records():
    train = GOOD[Format.PROMPT_COMPLETION]
    heldout = [
        {"completion": "b", "prompt": "r", "more": 1},
        {"prompt": "q", "completion": "z"},
        {"prompt": "s", "completion": "a"},
    ]
    assert found(*train, heldout=heldout) == [
        ("error", "held-out records that are trained on", ["h.jsonl, line 1: as d.jsonl, line 2"]),
        (
            "warning", "held-out prompts that are trained on, with other answers",
            ["h.jsonl, line 2: prompt of d.jsonl, line 1"],
        ),
    ]  # fmt: skip


def test_texts_that_are_nearly_the_same():
    text = "Write a short poem about the sea, the wind and an old boat that nobody sails any more"
    close = text.replace("Write", "Compose")
    write("d.jsonl", {"prompt": text, "completion": "a"}, {"prompt": close.upper(), "completion": "a"})
    write("h.jsonl", {"prompt": f"{text}!", "completion": "b"}, {"prompt": "Name a fruit", "completion": "c"})
    found = inspect("d.jsonl", "h.jsonl", Reading(near=True)).findings
    assert [(one.severity, one.title, one.places) for one in found] == [
        ("warning", "records that nearly repeat an earlier one", ["d.jsonl, line 2: nearly as line 1"]),
        ("warning", "held-out prompts that are nearly trained on", ["h.jsonl, line 1: nearly as d.jsonl, line 1"]),
    ]
    assert inspect("d.jsonl", "h.jsonl", Reading()).findings == []


def test_held_out_records_of_another_format():
    [(severity, title, places)] = found(*GOOD[Format.MESSAGES], heldout=[{"text": "x"}])
    assert (severity, title) == ("error", "records that cannot be used")
    assert places[0].startswith("h.jsonl, line 1: field `messages` is missing; every record needs messages.")


def test_pairs():
    same = ("pairs whose chosen and rejected are the same", ["d.jsonl, line 1"])
    contradiction = ("warning", "records that contradict an earlier one")
    assert found(pair("q", "a", "a"), pair("q", "a", "b"))[0] == ("warning", *same)
    assert found(pair("q", "a", "a")) == [("error", *same)]
    assert contradiction not in [one[:2] for one in found(pair("q", "a", "a"), pair("q", "a", "a"))]
    early = {
        "chosen": [user("q"), said("a"), user("r"), said("b")],
        "rejected": [user("q"), said("c"), user("r"), said("b")],
    }
    assert found(early) == [("warning", "pairs that differ before the last answer", ["d.jsonl, line 1"])]
    strange = {"chosen": [user("q"), said("a")], "rejected": [user("r"), said("b")]}
    assert found(strange) == [("error", "pairs without a common prompt", ["d.jsonl, line 1"])]
    assert found({"chosen": "q a", "rejected": "x"}) == [
        ("error", "pairs without a common prompt", ["d.jsonl, line 1"])
    ]


def test_a_prompt_that_whole_conversations_repeat_is_no_part_of_them():
    write("d.jsonl", {"prompt": "q", "chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]})
    report = inspect("d.jsonl", None, Reading(tokenizer=build_tokenizer()))
    assert (report.train.part.format, report.findings) == (Format.WHOLE_PREFERENCE, [])


def test_labels():
    rows = [labelled("q", str(n), n == 0) for n in range(6)]
    assert found(*rows) == [("warning", "labels: 1 good, 5 bad", [])]
    assert found(*rows[:5]) == []
    assert found(*rows[1:]) == [("error", "labels: 0 good, 5 bad", [])]
    assert found(*rows[:4], labelled("q", "x", "maybe")) == [
        ("error", "records that cannot be used",
         ["d.jsonl, line 5: field `label` is str 'maybe'; expected true or false."]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "human", "content": "q"}, said("a")], ("error", "unknown roles", "message 1 is from `human`")),
        ([user("q"), user("r"), said("a")], ("warning", "roles out of order", "message 2 (user) follows user")),
        ([said("a")], ("warning", "roles out of order", "message 1 (assistant) follows nothing")),
        (
            [user("q"), {"role": "system", "content": "s"}, said("a")],
            ("warning", "roles out of order", "message 2 (system) follows user"),
        ),
        ([user("q"), said(" ")], ("warning", "empty messages", "message 2 is empty")),
    ],
)
def test_roles(messages, expected):
    severity, title, what = expected
    assert (severity, title, [f"d.jsonl, line 1: field `messages`, {what}"]) in found({"messages": messages})


def test_conversations_with_tools_and_without_answers():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert found({"messages": [user("q"), call, {"role": "tool", "content": "1"}, said("a")]}) == []
    assert found({"messages": [user("q")]}) == [
        ("error", "conversations without an answer",
         ["d.jsonl, line 1: field `messages`: no message of the assistant"]),
    ]  # fmt: skip
    assert found({"prompt": [user("q")]}) == []


def test_lengths():
    assert Lengths.of(range(1, 101)) == Lengths(median=50, most=95, longest=100)
    assert Lengths.of([7]) == Lengths(7, 7, 7)
    write("d.jsonl", {"prompt": "12+3", "completion": "15"}, {"prompt": "1+1", "completion": "2"})
    checked = inspect("d.jsonl", None, Reading(tokenizer=build_tokenizer())).train
    assert checked.characters == {"prompt": Lengths(3, 4, 4), "completion": Lengths(1, 2, 2)}
    # <|user|> prompt <|end|> <|assistant|> completion <|end|>: four tokens more
    assert checked.tokens == checked.characters | {"prompt + completion": Lengths(8, 10, 10)}


def test_too_long_sequences_are_counted():
    rows = {"prompt": "12+3", "completion": "15"}, {"prompt": "1+1", "completion": "2"}
    assert found(*rows, tokenizer=build_tokenizer(), max_length=9) == [
        ("warning", "sequences of more than 9 tokens", ["d.jsonl, line 1: prompt + completion has 10 tokens"])
    ]


def templated(template):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def titles(*rows, tokenizer):
    return [(severity, title) for severity, title, _ in found(*rows, tokenizer=tokenizer)]


def test_a_template_that_refuses():
    strict = templated(
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{% generation %}{{ m['content'] + '<|end|>' }}{% endgeneration %}{% endfor %}"
    )
    messages = [{"role": "system", "content": "s"}, user("q"), said("a")]
    assert found({"messages": messages[1:]}, {"messages": messages}, tokenizer=strict) == [
        ("error", "conversations that the chat template refuses",
         ["d.jsonl, line 2: the chat template refuses these messages: no system here"]),
    ]  # fmt: skip


def test_a_tokenizer_without_template():
    assert titles({"messages": [user("q"), said("a")]}, tokenizer=templated(None)) == [
        ("error", "messages, but the tokenizer has no chat template")
    ]
    assert titles(*GOOD[Format.PROMPT_COMPLETION], tokenizer=templated(None)) == []


def test_a_template_without_marks_or_end():
    bare = templated("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert titles({"messages": [user("q"), said("a")]}, tokenizer=bare) == [
        ("warning", "no answer ends with the end-of-sequence token '<|end|>'"),
        ("warning", "the chat template does not mark the assistant's turns"),
    ]


def test_a_prompt_that_is_rendered_otherwise_once_it_is_answered():
    marked = templated(
        "{% for m in messages %}{{ m['content'] + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    assert ("warning", "prompts that are other tokens once an answer follows") in titles(
        {"prompt": "q", "completion": "a"}, tokenizer=marked
    )


def test_special_tokens_in_texts():
    assert found({"prompt": "1<|end|>", "completion": "2"}, tokenizer=build_tokenizer()) == [
        ("warning", "texts that spell special tokens", ["d.jsonl, line 1: <|end|>"])
    ]


def test_a_beginning_of_sequence_that_comes_twice():
    core = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "q": 2, "a": 3, "?": 4}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="?")
    tokenizer.chat_template = (
        "<s>{% for m in messages %}{% generation %}{{ m['content'] + '</s>' }}{% endgeneration %}{% endfor %}"
    )
    twice = ("error", "sequences that begin with two beginning-of-sequence tokens", ["d.jsonl, line 2"])
    rows = [{"messages": [user("q"), said("a")]}, {"messages": [user("<s> q"), said("a")]}]
    assert twice in found(*rows, tokenizer=tokenizer)


def printed(every=False):
    console = Console(width=200, record=True, highlight=False, file=open("out", "w"))  # noqa: SIM115
    show(console, inspect("d.jsonl", "h.jsonl", Reading()), every)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_what_is_printed():
    write("d.jsonl", *[{"prompt": "q", "completion": "a"}] * 5, "{")
    write("h.jsonl", {"prompt": "four", "completion": "b"})
    lines = printed()
    assert lines == [
        "d.jsonl  6 rows: prompt and completion",
        "                            characters",
        "              median  95 %     longest",
        "  prompt           1     1           1",
        "  completion       1     1           1",
        "error: rows that cannot be read (1)",
        "  d.jsonl, line 6: not valid JSON (Expecting property name enclosed in double quotes, column 2); each line "
        "must hold one JSON object.",
        "warning: records that repeat an earlier one (4)",
        "  d.jsonl, line 2: as line 1",
        "  d.jsonl, line 3: as line 1",
        "  d.jsonl, line 4: as line 1",
        "  and 1 more (--all shows them)",
        "  They count twice in training.",
        "",
        "h.jsonl  1 rows: prompt and completion",
        "                            characters",
        "              median  95 %     longest",
        "  prompt           4     4           4",
        "  completion       1     1           1",
        "",
        "1 error, 1 warning",
    ]
    assert "  d.jsonl, line 5: as line 1" not in lines and "  d.jsonl, line 5: as line 1" in printed(every=True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["good.jsonl"], 0, "no errors, 0 warnings"),
        (["twice.jsonl"], 0, "no errors, 1 warning"),
        (["good.jsonl", "--heldout", "good.jsonl"], 1, "1 error, 0 warnings"),
        (["good.jsonl", "--max-length", "5"], 2, "--max-length counts tokens, which needs a tokenizer: --model FOLDER"),
        (["good.jsonl", "--format", "x"], 2, "--format=x: expected one of auto, trl, alpaca, sharegpt, hh."),
        (["good.jsonl", "--columns", "a=b"], 2, "--columns a=b: expected NAME=COLUMN,... with NAME one of prompt,"),
        (["good.jsonl", "--columns", "text=b"], 2, "no record of good.jsonl has `b`; it has ['prompt']."),
        (["none.jsonl"], 2, "there is no file or folder none.jsonl"),
    ],
)
def test_exit_codes(arguments, code, says):
    write("good.jsonl", {"prompt": "q"})
    write("twice.jsonl", {"prompt": "q"}, {"prompt": "q"})
    result = CliRunner().invoke(app, ["data", "check", *arguments])
    assert (result.exit_code, says in result.output) == (code, True), result.output


def test_a_model_that_cannot_be_loaded_is_told_with_the_option_that_named_it(monkeypatch):
    def fails(spec, path):
        raise ModelError(f"model.path: cannot load the tokenizer of {path}. Give another: model.path=FOLDER.")

    monkeypatch.setattr("rlpipe.models.load.load_tokenizer", fails)
    write("good.jsonl", {"prompt": "q"})
    result = CliRunner().invoke(app, ["data", "check", "good.jsonl", "--model", "none"])
    assert result.exit_code == 2
    assert result.output == "error: --model: cannot load the tokenizer of none. Give another: --model=FOLDER.\n"


def test_without_a_model_nothing_heavy_is_imported():
    write("d.jsonl", *GOOD[Format.PROMPT_COMPLETION])
    code = (
        "import sys; from rlpipe.pipelines.data_check import check; "
        "check('d.jsonl', None, None, 'auto', '', None, True, False); "
        "print({'torch', 'transformers', 'datasets', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
