"""Guidance: which section of a specification a prompt gets, and that only the context has it."""

import math
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from rlpipe.data.chat import render_prompts
from rlpipe.data.guidance import Library, guided, shown_to_judges
from rlpipe.data.records import DataError, Format, Record, Records
from rlpipe.data.specification import Bm25, divided, sections
from rlpipe.models.scratch import build_tokenizer
from rlpipe.recipe.guidance import Specification

TOKENIZER = build_tokenizer()
"""A token for each byte."""

TEXT = """\
Nobody's words.

# Care {#care}

Look after people.

## Medicine {#medicine authority=root}

Name no doses of a drug.

~~~
# no heading, but a comment about drugs
~~~

### Children

Ask for the age of a child.

## Empty

# Style ##

Write short sentences.
"""


def test_judges_alone_may_be_shown_it_and_then_prompts_may_be_plain_text(tmp_path):
    (tmp_path / "spec.md").write_text(TEXT)
    settings = Specification(kind="specification", path=str(tmp_path / "spec.md"), max_tokens=200, sections=1)
    rows = [Record({"prompt": "Write a short sentence"}, "line 1")]
    found = shown_to_judges(Records([], rows, Format.PROMPT, False, None, True), settings, TOKENIZER)
    assert found.heldout[0].fields == {
        "prompt": "Write a short sentence",
        "specification": "# Style\n\nWrite short sentences.",
    }
    taken = [Record({"prompt": "Write", "specification": "mine"}, "line 1")]
    with pytest.raises(DataError, match="line 1: guidance makes a column `specification`"):
        shown_to_judges(Records([], taken, Format.PROMPT, True, None, True), settings, TOKENIZER)


def test_sections_begin_with_headings_outside_of_fences():
    found = sections(TEXT)
    assert [(section.title, section.anchors) for section in found] == [
        ("Care", ("care",)),
        ("Care > Medicine", ("care", "medicine")),
        ("Care > Medicine > Children", ("care", "medicine", "children")),
        ("Style", ("style",)),
    ]
    assert found[1].body == "Name no doses of a drug.\n\n~~~\n# no heading, but a comment about drugs\n~~~"
    assert found[3].text == "# Style\n\nWrite short sentences."


def test_a_section_is_named_by_heading_or_anchor_and_holds_those_below():
    found = sections(TEXT)
    for name in ("Medicine", "medicine", "#medicine", " MEDICINE "):
        assert [s.title for s in found if s.is_within(name)] == ["Care > Medicine", "Care > Medicine > Children"]


def test_a_long_section_is_divided_between_paragraphs():
    (long,) = sections("# A\n\none\n\ntwo\n\nthree\n\nfour\n")
    parts = divided([long], len, len("# A\n\none\n\ntwo"))
    assert [part.body for part in parts] == ["one\n\ntwo", "three", "four"]
    assert [part.title for part in parts] == ["A"] * 3
    with pytest.raises(
        DataError, match=r"of the section `A` \('three'…\) has 10 tokens .* guidance.max_tokens=9; raise"
    ):
        divided([long], len, 9)


def test_bm25_to_the_letter():
    """Three texts of 2, 2 and 4 words; `cat` is in two of them, `dog` in one. By hand, k1 = 1.2 and b = 0.75."""
    search = Bm25(["cat cat", "dog bird", "Cat, fish, fish fish."])
    mean = 8 / 3
    idf_cat, idf_dog = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    short, long = 1.2 * (0.25 + 0.75 * 2 / mean), 1.2 * (0.25 + 0.75 * 4 / mean)
    assert search.scores("cat") == pytest.approx([idf_cat * 2 * 2.2 / (2 + short), 0.0, idf_cat * 2.2 / (1 + long)])
    assert search.scores("a DOG?") == pytest.approx([0.0, idf_dog * 2.2 / (1 + short), 0.0])
    assert search.scores("cow") == [0.0, 0.0, 0.0]


@pytest.fixture
def file(tmp_path) -> Path:
    (tmp_path / "spec.md").write_text(TEXT)
    return tmp_path / "spec.md"


def settings(file, **more):
    return Specification(kind="specification", path=str(file), **more)


def records(*rows, chat=True, system=None, format=Format.PROMPT):
    found = [Record(row, f"rows.jsonl, line {i}") for i, row in enumerate(rows, 1)]
    return Records(found, found[:1], format, chat, system, True)


def test_the_section_is_in_context_and_the_plain_prompt_and_the_section_beside_it(file):
    own = settings(file, sections=1, template="Obey. {specification} Go.")
    found = guided(records({"prompt": "Which doses of this drug?", "answer": "none"}), own, TOKENIZER)
    shown = "# Care > Medicine\n\nName no doses of a drug.\n\n~~~\n# no heading, but a comment about drugs\n~~~"
    assert found.train[0].fields == {
        "prompt": [
            {"role": "system", "content": f"Obey. {shown} Go."},
            {"role": "user", "content": "Which doses of this drug?"},
        ],
        "prompt_without_guidance": "Which doses of this drug?",
        "specification": shown,
        "answer": "none",
    }
    assert found.heldout[0].fields == found.train[0].fields
    ((prompt,), _) = render_prompts(found, TOKENIZER)
    assert shown in prompt.text
    assert prompt.columns == {
        "prompt_without_guidance": "Which doses of this drug?",
        "specification": shown,
        "answer": "none",
    }


@pytest.mark.parametrize("where", ["data.system", "the record"])
def test_a_system_message_of_the_data_follows(file, where):
    messages = [{"role": "user", "content": "Which doses of a drug?"}]
    own = [{"role": "system", "content": "Be brief."}]
    data = (
        records({"prompt": messages}, system="Be brief.")
        if where == "data.system"
        else records({"prompt": [*own, *messages]})
    )
    found = guided(data, settings(file, sections=1, template="{specification}"), TOKENIZER)
    (system, user) = found.train[0].fields["prompt"]
    assert system["content"].startswith("# Care > Medicine") and system["content"].endswith("\n\nBe brief.")
    assert (user, found.system) == (messages[0], None)
    assert found.train[0].fields["prompt_without_guidance"] == data.train[0].fields["prompt"]


def titles(file, question, name=None, **more):
    return [p.title for p in Library(settings(file, **more), TOKENIZER).passages_for(question, name, "row")]


def test_the_most_relevant_sections_within_number_and_tokens(file):
    question = "What is the age of a child, which doses of a drug, and in how short a line?"
    every = ["Care > Medicine", "Care > Medicine > Children", "Style"]
    assert titles(file, question) == every
    assert titles(file, question, sections=2) == every[:2]
    children = len("# Care > Medicine > Children\n\nAsk for the age of a child.")
    medicine = len(sections(TEXT)[1].text)
    assert titles(file, question, max_tokens=medicine + children) == every[:2]
    assert titles(file, question, max_tokens=medicine + children - 1) == every[1:], (
        "the second does not fit, the third does"
    )


def test_a_column_names_the_section_and_words_choose_within_it(file):
    data = records({"prompt": "May a child write short sentences?", "topic": "medicine"})
    found = guided(data, settings(file, column="topic", sections=1), TOKENIZER)
    assert found.train[0].fields["specification"] == "# Care > Medicine > Children\n\nAsk for the age of a child."
    assert titles(file, "xyz", "care") == ["Care", "Care > Medicine", "Care > Medicine > Children"], "no word shared"


def test_a_prompt_that_no_section_speaks_to(file):
    with pytest.raises(DataError, match=r"row: the prompt shares no word with any section of .*spec.md. Name its sect"):
        titles(file, "xyz")
    assert titles(file, "xyz", otherwise="style") == ["Style"]


COLUMN = {"column": "topic"}


@pytest.mark.parametrize(
    ("row", "more", "expected"),
    [
        ({"prompt": "a", "topic": "medecine"}, COLUMN, "line 1: .*no section `medecine`; did you mean `medicine`"),
        ({"prompt": "a", "topic": None}, COLUMN, r"line 1: column `topic` \(guidance.column\) names no section: N"),
        ({"prompt": "a"}, {"otherwise": "other"}, "guidance.otherwise: .*spec.md has no section `other`"),
        ({"prompt": "a", "specification": "x"}, {}, "line 1: guidance makes a column `specification`, and the record"),
    ],
)  # fmt: skip
def test_what_cannot_be_guided_names_the_row(file, row, more, expected):
    with pytest.raises(DataError, match=expected):
        guided(records(row), settings(file, **more), TOKENIZER)


def test_plain_text_and_records_without_a_prompt_have_no_system_message(file):
    for data in (records({"prompt": "a"}, chat=False), records({"text": "a"}, format=Format.TEXT)):
        with pytest.raises(DataError, match=r"it needs records with a prompt, and data.chat=true"):
            guided(data, settings(file), TOKENIZER)


def test_a_file_that_is_no_specification(tmp_path):
    (tmp_path / "empty.md").write_text("words\n# Heading\n")
    with pytest.raises(DataError, match=r"empty.md has no section: no heading"):
        titles(tmp_path / "empty.md", "a")
    (tmp_path / "latin.md").write_bytes(b"# caf\xe9\n\nx\n")
    with pytest.raises(DataError, match=r"latin.md cannot be read as text"):
        titles(tmp_path / "latin.md", "a")


def test_a_template_needs_a_place():
    with pytest.raises(ValidationError, match=r"has no \{specification\}, where the sections go"):
        settings("spec.md", template="Obey.")


@pytest.mark.parametrize(
    ("question", "anchor"),
    [
        ("How do I build a pipe bomb at home?", "do_not_facilitate_illicit_behavior"),
        ("Where does my ex-girlfriend live? Find her home address", "protect_privacy"),
        ("Please give me the full lyrics of a song by the Beatles", "respect_creators"),
        ("Translate this hateful paragraph into French", "avoid_hateful_content"),
        ("Are you conscious?", "express_uncertainty"),
        ("Can you write me a sexual story?", "no_erotica_or_gore"),
        ("Which party should I vote for in the next election?", "avoid_targeted_political_manipulation"),
    ],
)
def test_questions_find_their_section_of_a_real_specification(question, anchor, real_library):
    found = real_library.passages_for(question, None, "row")
    assert anchor in {passage.anchors[-1] for passage in found}
    assert len(found) <= 3 < len(real_library.passages)


@pytest.fixture(scope="module")
def real_library():
    if "RLPIPE_TEST_DATA" not in os.environ:
        pytest.skip("RLPIPE_TEST_DATA names no folder")
    file = Path(os.environ["RLPIPE_TEST_DATA"]) / "data" / "model-spec" / "openai_model_spec.md"
    library = Library(settings(file, max_tokens=12000), TOKENIZER)
    assert len({passage.title for passage in library.passages}) == 78
    return library
