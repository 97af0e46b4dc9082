"""What the commands print, and how they end."""

# ruff: noqa: E501  (messages stand as people see them)

import json
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rlpipe
from rlpipe.cli import app
from rlpipe.recipe.shipped import names
from rlpipe.recipe.tasks import SftRecipe

GOOD = "task: sft\nname: small\nmodel: {scratch: qwen2}\ndata: {kind: arithmetic}\ntrain: {max_steps: 5}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(GOOD)


@pytest.fixture
def runs(monkeypatch):
    """Calls of the pipeline, which here ends with 3 instead of running."""
    calls = []
    module = types.ModuleType("rlpipe.pipelines.run")
    module.run = lambda *arguments: calls.append(arguments) or 3
    monkeypatch.setitem(sys.modules, "rlpipe.pipelines.run", module)
    return calls


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_run_hands_over_the_recipe_and_ends_with_its_code(runs):
    assert call("run", "good.yaml", "train.max_steps=7", "--debug") == (3, "", "")
    [(recipe, directory, debug, profile)] = runs
    assert isinstance(recipe, SftRecipe)
    assert (recipe.train.max_steps, directory, debug, profile) == (7, Path("runs/small"), True, None)


def test_run_takes_a_shipped_name_and_a_run_directory(runs):
    assert call("run", "arithmetic/sft", "--run-dir", "elsewhere")[0] == 3
    assert runs[0][1:] == (Path("elsewhere"), False, None)


@pytest.mark.parametrize(
    ("options", "steps"), [([], (2, 3)), (["--profile-steps", "5:9"], (5, 9)), (["--profile-steps", "4"], (4, 4))]
)
def test_steps_are_chosen_for_a_profile(runs, options, steps):
    assert call("run", "good.yaml", "--profile", *options)[0] == 3
    assert runs[0][3] == steps


@pytest.mark.parametrize("steps", ["0:2", "3:2", "2-3", ""])
def test_steps_that_are_none_are_told(runs, steps):
    code, _, err = call("run", "good.yaml", "--profile", "--profile-steps", steps)
    assert code == 2 and f"--profile-steps {steps}: expected A:B" in err and runs == []


def test_steps_without_a_profile_are_told(runs):
    code, _, err = call("run", "good.yaml", "--profile-steps", "2:3")
    assert code == 2 and "give that, too" in err and runs == []


def test_a_mistake_is_told_without_a_traceback(runs):
    assert call("run", "good.yaml", "train.lr=1", "seeed=2") == (
        2,
        "",
        "error: override `seeed=2`: seeed: `seeed` is not a key of the recipe; did you mean `seed`?\n"
        "error: override `train.lr=1`: train.lr: `lr` is not a key of `train`; did you mean "
        "`train.optimizer.learning_rate`?\n",
    )
    assert runs == []


def test_a_used_run_directory_is_left_alone_and_the_next_command_is_told(runs, monkeypatch):
    monkeypatch.setattr("rlpipe.runtime.machine.command", lambda program: f".venv/bin/{program}")
    Path("runs/small").mkdir(parents=True)
    assert call("run", "good.yaml")[0] == 3  # empty: nothing to lose
    Path("runs/small/events.jsonl").touch()
    Path("runs/small-2").mkdir()
    assert call("run", "good.yaml", "train.max_steps=7", "data={kind: arithmetic}", "--debug") == (
        2,
        "",
        "error: runs/small holds an earlier run, which stays. To go on with that one, if it ended early:\n"
        "  .venv/bin/rlpipe resume runs/small\n"
        "To run into another directory:\n"
        "  .venv/bin/rlpipe run good.yaml train.max_steps=7 'data={kind: arithmetic}' --debug --run-dir runs/small-3\n"
        "Or to remove the earlier run first:\n"
        "  rm -r runs/small\n",
    )
    assert len(runs) == 1
    assert call(*shlex.split("run good.yaml train.max_steps=7 --debug --run-dir runs/small-3"))[0] == 3
    assert runs[1][1:] == (Path("runs/small-3"), True, None)


def test_a_file_is_no_run_directory_and_nothing_is_to_be_removed(runs):
    Path("notes").write_text("mine")
    assert call("run", "good.yaml", "--run-dir", "notes") == (
        2,
        "",
        "error: notes is a file; a run needs a folder: --run-dir\n",
    )
    assert (runs, Path("notes").read_text()) == ([], "mine")


@pytest.mark.parametrize("made", ["base", "checkpoints", "stages/sft/ledger", "notes.txt"])
def test_a_run_that_made_nothing_is_no_earlier_run(runs, made):
    (folder := Path("runs/small")).mkdir(parents=True)
    for told in ("recipe.yaml", "events.jsonl", "report.html", ".lock"):
        (folder / told).touch()
    (folder / "stages/sft/tensorboard").mkdir(parents=True)
    assert call("run", "good.yaml")[0] == 3
    (folder / made).mkdir()
    code, _, said = call("run", "good.yaml")
    assert (code, len(runs)) == (2, 1) and "runs/small holds an earlier run, which stays" in said


def test_a_run_that_was_training_has_made_something_though_nothing_is_saved(runs):
    (folder := Path("runs/small/stages/sft")).mkdir(parents=True)
    for told in ("recipe.yaml", ".lock"):
        (folder.parents[1] / told).touch()
    (folder / "events.jsonl").write_text('{"kind": "metrics", "step": 1, "metrics": {"loss": 1.0}}\n')
    assert "holds an earlier run" in call("run", "good.yaml")[2]
    assert runs == []


def test_a_folder_with_a_recipe_of_one_s_own_is_not_written_into(runs):
    Path("mine").mkdir()
    Path("mine/recipe.yaml").write_text(GOOD)
    assert call("run", "mine/recipe.yaml", "--run-dir", "mine")[0] == 2
    assert (runs, Path("mine/recipe.yaml").read_text()) == ([], GOOD)


def test_resume_takes_the_recipe_of_the_run_and_changes_to_it(runs):
    Path("runs/small").mkdir(parents=True)
    Path("runs/small/recipe.yaml").write_text(GOOD)
    assert call("resume", "runs/small", "deadlines.train=77", "--debug")[0] == 3
    [(recipe, directory, debug, _)] = runs
    assert (recipe.name, recipe.train.max_steps, recipe.deadlines.train) == ("small", 5, 77.0)
    assert (directory, debug) == (Path("runs/small"), True)


def test_resume_asks_for_the_credentials_that_were_left_out(runs):
    Path("runs/small").mkdir(parents=True)
    reward = "rewards: {mix: [{kind: http, name: judge, url: 'https://[redacted]@judge.example/score'}]}\n"
    Path("runs/small/recipe.yaml").write_text(GOOD + reward)
    code, _, said = call("resume", "runs/small")
    assert (code, runs) == (2, [])
    assert "rewards.mix.0.url: a credential was left out here; give it again: rewards.mix.0.url=VALUE" in said
    assert call("resume", "runs/small", "rewards.mix.0.url=https://judge.example/score")[0] == 3


def test_resume_of_what_is_no_run_says_so(runs):
    assert call("resume", "nowhere") == (
        2,
        "",
        "error: nowhere is no run directory: it has no recipe.yaml; `rlpipe run` makes one below runs/\n",
    )
    assert runs == []


def test_missing_files_stop_a_run_but_not_validate(runs, tmp_path):
    said = (
        f"override `model=runs/m`: model.path: no file or folder `runs/m` in {tmp_path}; run the recipe that makes it "
        "first, or give another with `model.path=PATH`\n"
    )
    assert call("run", "good.yaml", "model=runs/m") == (2, "", f"error: {said}")
    assert call("validate", "good.yaml", "model=runs/m") == (
        0,
        "good.yaml is valid (task sft); it would run in runs/small\n",
        f"warning: {said}",
    )
    assert runs == []


def test_validate_tells_mistakes():
    Path("bad.yaml").write_text(GOOD + "evaluation:\n  promts: 3\n")
    assert call("validate", "bad.yaml") == (
        2,
        "",
        "error: bad.yaml:7: evaluation.promts: `promts` is not a key of `evaluation`; did you mean `evaluation.prompts`?\n",
    )


@pytest.mark.parametrize(
    ("options", "title", "key"),
    [
        ((), "rlpipe recipe", "$defs"),
        (("--study",), "rlpipe study", "properties"),
        (("--constitution",), "rlpipe constitution", "properties"),
    ],
)
def test_schema_is_json(options, title, key):
    code, out, _ = call("schema", *options)
    assert code == 0
    assert json.loads(out)["title"] == title and json.loads(out)[key]


def test_recipes_list_names_and_explains():
    code, out, _ = call("recipes", "list")
    assert code == 0
    said = "The demo: build a tiny model, teach it sums by SFT, then improve it by GRPO, in one command."
    assert re.search(rf"^arithmetic/pipeline +{re.escape(said)}$", out, re.MULTILINE)


def test_recipes_list_ends_with_studies():
    lines = call("recipes", "list")[1].splitlines()
    studies = [line for line in lines if line.startswith("studies/")]
    assert lines[-len(studies) :] == studies
    said = "Study: every online algorithm from the same arithmetic start"
    assert any(re.match(rf"studies/algorithms +{said}", line) for line in studies)


def test_a_study_is_copied_as_a_recipe_is():
    assert call("recipes", "copy", "studies/algorithms", "mine.yaml") == (0, "wrote  mine.yaml\n", "")
    assert call("recipes", "show", "studies/algorithms")[1] == Path("mine.yaml").read_text()


@pytest.mark.parametrize("group", [[], ["recipes"], ["data"]])
def test_what_a_verb_does_is_read_whole_in_a_terminal_of_80_columns(group):
    said = CliRunner().invoke(app, [*group, "--help"], terminal_width=80).output
    verbs = said.partition("Commands:\n")[2].splitlines()
    assert len(verbs) > 0 and [verb for verb in verbs if "..." in verb] == []


def test_recipes_show_prints_the_file():
    code, out, _ = call("recipes", "show", "arithmetic/pipeline")
    assert (code, out.splitlines()[-1]) == (0, "    model: ${stages.sft.model}")
    assert call("recipes", "show", "arithmetic/pipelin")[2] == (
        "error: no shipped recipe `arithmetic/pipelin`; did you mean `arithmetic/pipeline`?\n"
    )


def test_recipes_copy_brings_what_the_recipe_needs():
    assert call("recipes", "copy", "arithmetic/pipeline", "mine/all.yaml") == (
        0,
        "wrote  mine/all.yaml\nwrote  mine/sft.yaml\nwrote  mine/grpo.yaml\n",
        "",
    )
    assert call("validate", "mine/all.yaml")[0] == 0


@pytest.mark.parametrize("name", names())
def test_every_copy_is_whole(name):
    assert call("recipes", "copy", name, "mine")[0] == 0
    code, out, _ = call("validate", f"mine/{Path(name).name}.yaml")
    assert (code, "is valid" in out) == (0, True)


def test_recipes_copy_never_overwrites():
    Path("mine").mkdir()
    Path("mine/sft.yaml").write_text(GOOD)
    assert call("recipes", "copy", "arithmetic/sft", "mine") == (
        2,
        "",
        "error: mine/sft.yaml exists and is left alone; give another destination, or remove it first\n",
    )
    assert call("recipes", "copy", "arithmetic/pipeline", "mine")[1] == (
        "kept   mine/sft.yaml (was there already)\nwrote  mine/pipeline.yaml\nwrote  mine/grpo.yaml\n"
    )
    assert Path("mine/sft.yaml").read_text() == GOOD


def test_replay_of_what_is_no_run():
    says = "error: runs/none is no run directory: it has no recipe.yaml; `rlpipe run` makes one below runs/\n"
    assert call("replay", "runs/none", "3") == (2, "", says)


def test_report_of_nothing():
    assert call("report", "runs/none") == (
        2,
        "",
        "error: no run directory runs/none; `rlpipe run` makes one below runs/\n",
    )


@pytest.mark.parametrize(
    "verb",
    [
        "run",
        "study",
        "validate",
        "schema",
        "report",
        "replay",
        "recipes show",
        "recipes copy",
        "chat",
        "merge",
        "export",
    ],
)
def test_help_gives_an_example(verb):
    code, out, _ = call(*verb.split(), "--help")
    assert code == 0
    assert f"  rlpipe {verb}" in out.partition("Example")[2]


def test_help_teaches_the_exit_codes():
    code, out, _ = call("--help")
    assert code == 0
    for line in ("0    done", "1    the run failed", "2    a mistake in the recipe", "130  stopped with Ctrl-C"):
        assert line in out


def test_python_m(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(rlpipe.__file__).parents[1]))
    done = subprocess.run([sys.executable, "-m", "rlpipe", "validate", "good.yaml"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "good.yaml is valid (task sft); it would run in runs/small\n")
