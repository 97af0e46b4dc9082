"""What can be said of the pages without running anything."""

import re
from pathlib import Path

import key_tables
import pytest
from code_blocks import FENCE, blocks, inline_commands

from rlpipe.recipe.load import read
from rlpipe.recipe.shipped import names
from rlpipe.recipe.study import Study

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
VERBS = {
    "run",
    "plan",
    "resume",
    "submit",
    "jobs",
    "label",
    "logs",
    "status",
    "stop",
    "attach",
    "supervise",
    "validate",
    "schema",
    "doctor",
    "report",
    "ledger",
    "replay",
    "recipes",
    "study",
    "eval",
    "data",
    "chat",
    "merge",
    "export",
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_tables_of_keys_are_the_schemas():
    text = key_tables.FILE.read_text()
    assert text == key_tables.with_tables(text), "the schema has changed: python tests/docs/key_tables.py"


def test_every_section_has_its_table():
    assert sorted(key_tables.tables(key_tables.FILE.read_text())) == sorted(key_tables.sections())


def test_the_keys_of_a_study_are_all_there():
    text = (ROOT / "docs" / "studies.md").read_text().partition("## The study file")[2].partition("## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(Study.model_fields)


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        goal = page.parent / file if file else page
        assert goal.exists(), target
        if anchor:
            assert anchor in anchors(goal), target


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_nothing_names_a_machine(page):
    assert re.findall(r"(?<![\w.])/(?:work|home|root|Users|mnt)/\S*", page.read_text()) == []


@pages
def test_commands_stand_in_blocks(page):
    """Elsewhere nobody would run them."""
    outside = FENCE.sub("", page.read_text())
    assert re.findall(r"^(?:    |\t)(?:\$ )?(?:rlpipe|make|python|pip) .*$", outside, re.MULTILINE) == []
    assert {block.language for block in blocks(page)} <= {"bash", "text", "yaml", "python", "diff"}


@pages
def test_files_that_are_named_are_there(page):
    text = FENCE.sub("", page.read_text())
    for name in re.findall(r"`((?:rlpipe|recipes|tests|requirements)/[\w./]+\.(?:py|yaml|txt))`", text):
        assert (ROOT / name).exists(), name


@pages
def test_commands_in_running_text_are_right(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "train.jsonl").touch()
    for command in inline_commands(page):
        verb, *rest = command.words[1:]
        assert verb in VERBS, command
        if verb in ("run", "validate") and rest and rest[0].removesuffix(".yaml").removeprefix("recipes/") in names():
            read(rest[0], [word for word in rest[1:] if not word.startswith("--")])
