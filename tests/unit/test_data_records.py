"""Loading records: every format, held-out handling, and errors that name file, row, field and fix."""

import gzip
import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from rlpipe.data.records import DataError, Format
from rlpipe.data.source import load_preferences, load_records
from rlpipe.recipe.data import HeldOut, RecordsData

ROWS = [{"prompt": f"q{i}", "completion": f"a{i}", "answer": str(i)} for i in range(6)]


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def load(path, only_prompts=False, heldout=None, **settings):
    heldout = heldout or HeldOut(count=2)
    return load_records(RecordsData(kind="records", path=str(path), heldout=heldout, **settings), only_prompts)


def test_jsonl_with_the_first_records_held_out(tmp_path):
    records = load(write(tmp_path / "d.jsonl", ROWS))
    assert records.format is Format.PROMPT_COMPLETION
    assert [r.fields for r in records.heldout] == ROWS[:2]
    assert [r.fields for r in records.train] == ROWS[2:]
    assert records.train[0].origin == f"{tmp_path / 'd.jsonl'}, line 3"


def test_every_kind_of_file_gives_the_same_records(tmp_path):
    csv = tmp_path / "d.csv"
    csv.write_text("prompt,completion,answer\n" + "".join(f"q{i},a{i},{i}\n" for i in range(6)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "d.parquet")
    (tmp_path / "d.json").write_text(json.dumps(ROWS))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    expected = [r.fields for r in load(write(tmp_path / "d.jsonl", ROWS)).train]
    for name in ("d.csv", "d.parquet", "d.json", "d.jsonl.gz"):
        assert [r.fields for r in load(tmp_path / name).train] == expected, name


def test_csv_values_stay_text(tmp_path):
    file = tmp_path / "d.csv"
    file.write_text('prompt,answer\n007,NA\n"1,5",1.0\n')
    records = load(file, only_prompts=True, heldout=HeldOut(count=1))
    assert records.heldout[0].fields == {"prompt": "007", "answer": "NA"}
    assert records.train[0].fields == {"prompt": "1,5", "answer": "1.0"}


def test_folder_with_splits(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", [{"prompt": "t", "completion": "u"}])
    records = load(tmp_path, heldout=HeldOut(split="test"))
    assert len(records.train) == 6
    assert [r.fields["prompt"] for r in records.heldout] == ["t"]


def test_held_out_file_and_its_count(tmp_path):
    other = write(tmp_path / "h.jsonl", ROWS)
    records = load(write(tmp_path / "d.jsonl", ROWS), heldout=HeldOut(path=str(other), count=4))
    assert (len(records.train), len(records.heldout)) == (6, 4)


def test_renamed_columns_keep_their_own_names_too(tmp_path):
    file = write(tmp_path / "d.jsonl", [{"question": "q", "answer": f"#### {i}"} for i in range(3)])
    records = load(file, columns={"prompt": "question", "completion": "answer"})
    assert records.train[0].fields == {
        "question": "q", "answer": "#### 2", "prompt": "q", "completion": "#### 2",
    }  # fmt: skip


def test_online_rl_needs_the_prompt_alone(tmp_path):
    assert load(write(tmp_path / "d.jsonl", [{"prompt": "q"}] * 3), only_prompts=True).format is Format.PROMPT


def test_shared_records_are_warned_about(tmp_path, caplog):
    load(write(tmp_path / "d.jsonl", ROWS))
    assert not caplog.records
    other = write(tmp_path / "h.jsonl", [*ROWS[:1], {"prompt": "new", "completion": "x"}])
    load(tmp_path / "d.jsonl", heldout=HeldOut(path=str(other)))
    assert "1 of 2 held-out records are also training records" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "q"},
            "line 3: field `completion` is missing; every record needs prompt and completion.*data.columns",
        ),
        ({"prompt": None, "completion": "a"}, "line 3: field `prompt` is missing"),
        ({"prompt": 5, "completion": "a"}, "line 3: field `prompt` is int 5; expected text or a list of messages"),
        ({"prompt": "  ", "completion": "a"}, "line 3: field `prompt` is empty"),
        ({"prompt": "q", "completion": ""}, "line 3: field `completion` is empty"),
        ({"prompt": [], "completion": []}, "line 3: field `prompt` is an empty list"),
        ({"prompt": "q", "completion": [{"role": "assistant", "content": "a"}]}, "line 3.*must be text where `prompt`"),
        ({"prompt": [{"content": "q"}], "completion": []}, "line 3: field `prompt`, message 1 is dict.*expected {role"),
        ({"prompt": [{"role": "user", "content": 5}], "completion": []}, "message 1 has content int 5; expected text"),
        ('{"prompt": "q", ', "line 3: not valid JSON.*each line must hold one JSON object"),
        ("[1, 2]", "line 3: expected a JSON object with fields, got list"),
    ],
)
def test_a_bad_row_names_its_place_and_the_fix(tmp_path, row, message):
    file = write(tmp_path / "d.jsonl", [*ROWS[:2], row, *ROWS[2:]])
    with pytest.raises(DataError, match=f"^{re.escape(str(file))}, .*{message}"):
        load(file)


def test_blank_lines_count_but_are_no_records(tmp_path):
    with pytest.raises(DataError, match="line 5: field `completion` is missing"):
        load(write(tmp_path / "d.jsonl", [*ROWS[:2], "", "", {"prompt": "q"}]))


def test_undecodable_bytes_name_their_line(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_bytes(json.dumps(ROWS[0]).encode() + b'\n{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        load(file)


def test_csv_with_too_many_values_names_its_line(tmp_path):
    file = tmp_path / "d.csv"
    file.write_text("prompt,answer\na,b\nc,d,e\n")
    with pytest.raises(DataError, match="line 3: 1 more values than the header has columns"):
        load(file, only_prompts=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "{tmp}/none.jsonl"}, "data.path: there is no file or folder .*none.jsonl"),
        ({"heldout": HeldOut(path="{tmp}/none.csv")}, "data.heldout.path: there is no file or folder .*none.csv"),
        ({"heldout": HeldOut(count=6)}, "has 6 records and data.heldout.count=6 .*Lower data.heldout.count"),
        ({"heldout": HeldOut(split="test")}, "A single file has no splits"),
        ({"columns": {"prompt": "question"}}, "data.columns: no record of .* has `question`; it has"),
        ({"chat": False}, "line 1: field `prompt` is a list of messages, which data.chat=false cannot render"),
        ({"path": "{tmp}/d.docx"}, "d.docx: unknown kind of file; expected one of .jsonl"),
        (
            {"path": "{tmp}/other.jsonl"},
            "none of TRL's formats: prompt and completion, messages, or text.*data.columns",
        ),
    ],
)
def test_settings_that_do_not_fit_name_the_line_to_change(tmp_path, settings, message):
    turn = [{"role": "user", "content": "q"}]
    write(tmp_path / "d.jsonl", [{"prompt": turn, "completion": turn}] * 6)
    write(tmp_path / "other.jsonl", [{"question": "q"}] * 6)
    (tmp_path / "d.docx").write_text("text")
    settings = {"path": "{tmp}/d.jsonl"} | settings
    settings["path"] = settings["path"].format(tmp=tmp_path)
    if (heldout := settings.get("heldout")) and heldout.path:
        settings["heldout"] = HeldOut(path=heldout.path.format(tmp=tmp_path))
    with pytest.raises(DataError, match=message):
        load(**settings)


def test_records_that_cannot_be_used_are_left_out_and_counted_where_the_recipe_says_so(tmp_path, caplog):
    file = write(tmp_path / "d.jsonl", [*ROWS[:3], {"prompt": "q", "completion": ""}, {"prompt": "q"}, *ROWS[3:]])
    with pytest.raises(DataError, match="line 4: field `completion` is empty"):
        load(file)
    records = load(file, skip_unusable=True)
    assert [r.fields for r in records.train] == ROWS[2:]
    assert "2 of 6 records cannot be used and are left out (data.skip_unusable). The first: " in caplog.text
    assert "line 4: field `completion` is empty" in caplog.text
    write(file, [*ROWS[:2], {"prompt": "q"}, {"prompt": "r"}])
    with pytest.raises(DataError, match=r"None of 2 records can be used\. .*line 3: field `completion` is missing"):
        load(file, skip_unusable=True)


def test_transcripts_and_labelled_answers_that_cannot_be_used_are_left_out_alike(tmp_path):
    said = [f"\n\nHuman: {n}+1\n\nAssistant:" for n in range(4)]
    pairs = [{"chosen": f"{one} 2", "rejected": f"{one} 3"} for one in said]
    empty, odd = {"chosen": said[0], "rejected": f"{said[0]} 3"}, {"chosen": "1", "rejected": "2"}
    transcripts = write(tmp_path / "hh.jsonl", [*pairs[:2], empty, odd, *pairs[2:]])
    answers = [{"prompt": f"{n}", "completion": c, "label": c == "2"} for n in range(4) for c in ("2", "3")]
    labelled = write(tmp_path / "judged.jsonl", [*answers, {"prompt": "9", "completion": "9", "label": "maybe"}])
    for file, style in ((transcripts, "hh"), (labelled, "auto")):
        data = RecordsData(kind="records", path=str(file), format=style, skip_unusable=True, heldout=HeldOut(count=1))
        records = load_preferences(data)
        assert (len(records.train), len(records.heldout)) == (3, 1)
        with pytest.raises(DataError):
            load_preferences(data.model_copy(update={"skip_unusable": False}))


def test_a_text_file_is_one_record_and_a_folder_of_them_several(tmp_path):
    for name, text in {"b.txt": "two\nlines\n", "a.md": "# One", "deeper/c.txt": "ä"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"no text")
    records = load(tmp_path, heldout=HeldOut(count=1), chat=False)
    assert records.format is Format.TEXT
    assert [r.fields for r in records.heldout + records.train] == [
        {"text": "# One"}, {"text": "two\nlines\n"}, {"text": "ä"},
    ]  # fmt: skip
    assert records.train[0].file == str(tmp_path / "b.txt")
    alone = load(tmp_path / "b.txt", heldout=HeldOut(path=str(tmp_path / "a.md")), chat=False)
    assert [r.fields["text"] for r in alone.train + alone.heldout] == ["two\nlines\n", "# One"]


def test_text_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("ä".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8 text"):
        load(tmp_path / "latin.txt")


def test_data_of_another_kind_is_not_read_as_texts(tmp_path):
    """A read-me beside records is none."""
    write(tmp_path / "train.jsonl", ROWS)
    (tmp_path / "README.md").write_text("about the data")
    assert len(load(tmp_path).train) == 4
