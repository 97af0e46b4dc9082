"""Every command and code block of README and docs is run as a reader would: page by page, top to bottom, in one folder.

Runs are shrunk by overrides that are appended, and by --debug. What cannot be run in a test stands in `LISTED` with the
reason and another check. A command that is neither is an error.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import shrink
from code_blocks import Block, Command, blocks, commands
from typer.main import get_command
from warm import Done, Warm

import rlpipe
from rlpipe.cli import app
from rlpipe.data import judge_template
from rlpipe.recipe import constitution
from rlpipe.recipe.load import load
from rlpipe.recipe.study_file import read

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE_BEFORE = {
    "adapters.md",
    "debugging.md",
    "recipes.md",
    "rewards.md",
    "algorithms.md",
    "serving.md",
    "reliability.md",
}
"""Pages that say they start from the model of arithmetic/sft, without making it."""
LONG = {"studies.md"}
"""Pages whose commands tests/recipes/test_studies.py runs in another form."""
BESIDE_RECIPES = {"principles": constitution.read, "options": judge_template.load}
"""YAML files that recipes name, by a key that they alone have: what reads each raises for a wrong one."""
SHELL = {"ls", "pytest"}
ON_A_CLUSTER = {"submit", "jobs", "logs", "status", "stop", "attach", "supervise"}
"""Verbs that tests/integration/test_submit.py runs on a cluster, test_on_a_cluster.py as pages say them (soak); here
they only have to take what a page says."""

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@dataclass
class Reader:
    """Someone who does what a page says, in a folder of their own."""

    folder: Path
    warm: Warm
    local: Path
    changed_code: bool = False
    """Whether the page has changed rlpipe's code, in a copy below the folder."""
    last: Done | None = None

    def do(self, block: Block) -> None:
        match block.language:
            case "bash":
                for command in (found := commands(block)):
                    self.last = self.run(command.text, block.said.get("types", "") if command is found[-1] else "")
                    expected = int(block.said.get("exit", 0)) if command is found[-1] else 0
                    assert self.last.code == expected, f"{command.text}: {self.last.code}\n{self.last.output}"
                assert block.said.get("says", "") in self.last.output, self.last.output
            case "text" if "output" in block.said:
                assert shown(block.text).search(self.last.output), self.last.output
            case "python" | "yaml" if "title" in block.said:
                self.write(block)
            case "python":
                self.python(block)
            case "yaml":
                self.fragment(block)
            case "diff":
                self.change(block)

    def run(self, text: str, typed: str = "") -> Done:
        command = Command(text, 0)
        if text in LISTED:
            return LISTED[text].check(self)
        if command.words[0] == "rlpipe":
            return self.rlpipe(command.words[1:], typed)
        shipped_script = command.words[0] == "python" and command.words[1].startswith("recipes/")
        assert command.words[0] in SHELL or shipped_script, f"`{text}` is neither runnable nor listed"
        return self.shell(command.words)

    def rlpipe(self, words: list[str], typed: str = "") -> Done:
        if words[0] in ON_A_CLUSTER:
            return understood(words)
        if words[0] in ("run", "study", "label"):
            words = self.shrunk(words)
        if words[0] == "eval":  # of runs that are small, asked like them
            words = [*words, "--debug"]
        if ">" in words:
            *words, _, file = words
            done = self.rlpipe(words)
            (self.folder / file).write_text(done.output)
            return done
        if self.changed_code:
            return self.shell([sys.executable, "-m", "rlpipe", *words])
        return self.warm.rlpipe(words, self.folder, f"{typed}\n" * 100 if typed else "")

    def shrunk(self, words: list[str]) -> list[str]:
        """A small run in one process, or a study of such runs. A recipe that is wrong stays as it is."""
        changes = [word for word in words[2:] if "=" in word]
        here = Path.cwd()
        os.chdir(self.folder)
        try:
            study = read(words[1]).study if words[0] == "study" else None
            name, own = (study.recipe, study.changes) if study else (words[1], [])
            recipe = load(name, [*own, *(change for change in changes if "algorithm.name" not in change)])
        except ValueError:
            return words
        finally:
            os.chdir(here)
        if study:
            return [*words, *shrink.shrunk(recipe, self.local)]
        if "--debug" in words:  # the page's own
            return [*words, *shrink.shrunk(recipe, self.local, own_engine=True)]
        return [*words, *shrink.shrunk(recipe, self.local), "--debug"]

    def shell(self, words: list[str]) -> Done:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        code = {"PYTHONPATH": str(self.folder)} if self.changed_code else {}
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | code,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return Done(done.returncode, done.stdout, 0.0)

    def write(self, block: Block) -> None:
        file = self.folder / block.said["title"]
        if file.parts[len(self.folder.parts)] in ("rlpipe", "tests"):
            self.copy_code()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text)
        if other := next((key for key in BESIDE_RECIPES if re.search(rf"^{key}:", block.text, re.MULTILINE)), None):
            BESIDE_RECIPES[other](str(file))
        elif block.language == "yaml" and "mistakes" not in block.said:
            is_study = re.search(r"^grid:", block.text, re.MULTILINE)
            done = self.rlpipe(["study", file.name, "--dry-run"] if is_study else ["validate", file.name])
            assert done.code == 0, done.output

    def python(self, block: Block) -> None:
        file = self.folder / f"line_{block.line}.py"
        file.write_text(block.text)
        done = self.warm.python(file, self.folder)
        assert done.code == 0, done.output

    def fragment(self, block: Block) -> None:
        """Part of a recipe: right on top of a whole one."""
        file = self.folder / f"line_{block.line}.yaml"
        whole = re.search(r"^(task|extends):", block.text, re.MULTILINE)
        file.write_text(("" if whole else f"extends: {block.said.get('extends', 'arithmetic/grpo')}\n") + block.text)
        done = self.rlpipe(["validate", file.name])
        assert done.code == 0, done.output

    def change(self, block: Block) -> None:
        """Apply a diff whose hunks have no line numbers: each old text stands once in its file."""
        self.copy_code()
        for name, hunks in re.findall(r"^\+\+\+ b/(\S+)\n(.*?)(?=^--- |\Z)", block.text, re.MULTILINE | re.DOTALL):
            text = (self.folder / name).read_text()
            for hunk in re.split(r"^@@.*\n", hunks, flags=re.MULTILINE)[1:]:
                lines = hunk.splitlines()
                old, new = ("".join(f"{line[1:]}\n" for line in lines if line[:1] in f" {side}") for side in "-+")
                assert text.count(old) == 1, f"{name} has this {text.count(old)} times:\n{old}"
                text = text.replace(old, new)
            (self.folder / name).write_text(text)

    def copy_code(self) -> None:
        if not self.changed_code:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(Path(rlpipe.__file__).parent, self.folder / "rlpipe", ignore=ignored)
            self.changed_code = True


@dataclass(frozen=True)
class Listed:
    """A command that a test does not run, and what is looked at instead."""

    reason: str
    check: Callable[[Reader], Done]


def make(goal: str, does: str) -> Callable[[Reader], Done]:
    """make would do `does`, by its own word."""

    def check(reader: Reader) -> Done:
        done = subprocess.run(["make", "-n", goal], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and does in done.stdout, done
        if "rlpipe run" in does:
            return reader.run(does)
        return Done(0, done.stdout, 0.0)

    return check


def environment_is_made_there(reader: Reader) -> Done:
    assert "VENV := .venv\n" in (ROOT / "Makefile").read_text()
    return Done(0, "", 0.0)


def curves_are_there(reader: Reader) -> Done:
    """What TensorBoard finds in the folder that it would serve."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    found = EventMultiplexer().AddRunsFromDirectory(str(reader.folder / "runs" / "arithmetic"))
    found.Reload()
    tags = {tag for run in found.Runs().values() for tag in run["tensors"] + run["scalars"]}
    assert {"loss", "reward", "evaluation/accuracy", "phase/generate"} <= tags
    return Done(0, "", 0.0)


def adapters_can_be_served(reader: Reader) -> Done:
    """Both fit the places that the command makes, and are of one base."""
    folders = [reader.folder / name for name in ("first", "second")]
    settings = [json.loads((folder / "adapter_config.json").read_text()) for folder in folders]
    assert [found["r"] for found in settings] == [32, 32]
    assert len({found["base_model_name_or_path"] for found in settings}) == 1
    assert all((folder / "adapter_model.safetensors").exists() for folder in folders)
    return Done(0, "", 0.0)


def adapters_can_be_compared(reader: Reader) -> Done:
    done = reader.warm.rlpipe(["study", "studies/adapters", "model.path=FOLDER", "--dry-run"], reader.folder)
    assert done.code == 0 and re.search(r"adapters: (\d+) cells in runs/adapters, \1 to run", done.output), done.output
    return done


def stories_are_sampled(reader: Reader) -> Done:
    """A model that writes any bytes tells no happy story; that it is asked shows, and other pairs go on from there."""
    done = reader.shell(["python", "recipes/stories/preferences.py", "FOLDER", "pairs.jsonl", "2"])
    assert done.code == 0 and "pairs of 192 stories in pairs.jsonl" in done.output, done.output
    shutil.copy(reader.local / "pairs.jsonl", reader.folder)
    return done


def doctor_knows(reader: Reader) -> Done:
    done = _doctor()
    # Other programs may have taken the memory that it looks for.
    assert done.returncode == 0 or "cannot run: mend memory." in done.stdout, done.stdout
    return Done(0, done.stdout, 0.0)


@cache
def _doctor() -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "rlpipe", "doctor"], capture_output=True, text=True, timeout=300)


def gpu_tests_say_why_they_skip(reader: Reader) -> Done:
    files = sorted((ROOT / "tests/gpu").glob("test_*.py"))
    assert files and all("pytest.mark.gpu,\n    pytest.mark.skipif(" in file.read_text() for file in files)
    return Done(0, "", 0.0)


SERVE = (
    "vllm serve runs/arithmetic-sft/model --enable-lora --max-loras 2 --max-lora-rank 32 "
    "--lora-modules first=first second=second"
)
ASK = (
    "curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' "
    """-d '{"model": "second", "messages": [{"role": "user", "content": "27+58"}]}'"""
)

LISTED = {
    "make demo": Listed(
        "sets up an environment and trains for minutes; its recipe is run shrunk",
        make("demo", "rlpipe run recipes/arithmetic/pipeline.yaml"),
    ),
    "make test": Listed("would run this test again", make("test", "-m pytest")),
    "make soak MINUTES=10": Listed("takes that long; shortened in tests/chaos/test_soak.py", make("soak", "soak.py")),
    "source .venv/bin/activate": Listed("tests bring their environment along", environment_is_made_there),
    "tensorboard --logdir runs/arithmetic": Listed("serves until it is stopped", curves_are_there),
    SERVE: Listed(
        "serves until it is stopped; in tests in test_vllm_two_adapters.py and test_vllm_serve.py",
        adapters_can_be_served,
    ),
    ASK: Listed("asks the server of the command before", adapters_can_be_served),
    "python recipes/stories/preferences.py FOLDER pairs.jsonl": Listed(
        "tells 6,144 stories; here 192, and from the stand-in's no pairs come", stories_are_sampled
    ),
    "rlpipe study studies/adapters model.path=FOLDER": Listed(
        "runs a cell for each, whose kinds of adapter have tests; here their recipes are checked",
        adapters_can_be_compared,
    ),
    "python -m pytest tests/gpu -n 0 -rs": Listed("needs a GPU", gpu_tests_say_why_they_skip),
    "rlpipe doctor": Listed("answers for a machine that others load; run once for all pages", doctor_knows),
}


def understood(words: list[str]) -> Done:
    """Parsed and not run. An option that is not there raises."""
    command = get_command(app).commands[words[0]]
    command.make_context(words[0], words[1:])
    return Done(0, "", 0.0)


def shown(text: str) -> re.Pattern:
    """Matches the output that a page shows, in which `...` stands for anything on its line."""
    return re.compile(re.escape(text.strip()).replace(re.escape("..."), "[^\n]*"))


def marked(page: Path):
    """A page that takes minutes, and what it says has shorter tests, is read with -m soak."""
    return pytest.param(page, id=page.name, marks=[pytest.mark.soak] if page.name in LONG else [])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [marked(page) for page in PAGES])
def test_a_reader_gets_through(page, warm_rlpipe, local, tmp_path):
    for name in ("FOLDER", "train.jsonl", "example_model_solutions.jsonl", "seed_tasks.jsonl"):
        (tmp_path / name).symlink_to(local / name)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    if page.name in MADE_BEFORE:
        (tmp_path / "runs/arithmetic-sft").mkdir(parents=True)
        (tmp_path / "runs/arithmetic-sft/model").symlink_to(local / "FOLDER")
    reader = Reader(tmp_path, warm_rlpipe, local)
    for block in blocks(page):
        try:
            reader.do(block)
        except AssertionError as error:
            pytest.fail(f"{page.name}:{block.line}: {error}")


def test_what_is_listed_is_used():
    found = [block for page in PAGES for block in blocks(page) if block.language == "bash"]
    assert set(LISTED) <= {command.text for block in found for command in commands(block)}


@pytest.mark.parametrize("text", ["rm -r runs", "python train.py", "rlpip run x"])
def test_an_unknown_command_is_noticed(text, tmp_path):
    with pytest.raises(AssertionError, match="neither runnable nor listed"):
        Reader(tmp_path, None, tmp_path).run(text)
