"""Which changes have a model asked again: those of what stands in files, and not of where they lie."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from rlpipe.data.flow import Prompt
from rlpipe.pipelines import contents
from rlpipe.pipelines.evaluating import keys
from rlpipe.recipe.evaluating import EvalRecipe

PROMPTS = [Prompt("heldout-0-ab", np.array([1, 2], np.int32), "2+2=", {"answer": "4"})]
CONSTITUTION = """name: kind
version: 1
principles:
  - id: kind
    critique: Is it kind?
    revision: Make it kind.
    preference: Which is kinder?
"""
TEMPLATE = (
    "version: 1\noptions: [A, B]\nmessages:\n  - role: user\n    content: '{prompt} {principle} {first} {second}'\n"
)


@pytest.fixture
def folder(tmp_path):
    for name in ("model", "judge"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "reward.py").write_text("def worth(c, **k): return [1.0 for _ in c]\n")
    (tmp_path / "env.py").write_text("class Game: ...\n")
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION)
    (tmp_path / "template.yaml").write_text(TEMPLATE)
    return tmp_path


def recipe(folder, **changes):
    given = {
        "task": "eval",
        "models": {"a": {"path": str(folder / "model")}, "b": {"scratch": "qwen2"}},
        "data": {"kind": "arithmetic"},
        "rewards": {"mix": [{"kind": "python", "name": "own", "function": f"{folder / 'reward.py'}:worth"}]},
        "environment": {"kind": "python", "implementation": f"{folder / 'env.py'}:Game"},
        "judge": {
            "kind": "judge", "template": str(folder / "template.yaml"),
            "constitution": str(folder / "constitution.yaml"),
            "by": {"kind": "engine", "path": str(folder / "judge")},
        },
    }  # fmt: skip
    return EvalRecipe.model_validate(given | changes)


def served(folder, name="a", prompts=PROMPTS, **changes):
    one = SimpleNamespace(recipe=recipe(folder, **changes), name=name, prompts=([], prompts), adapter=None)
    one.model_path, one.from_scratch = str(folder / "model"), name == "b"
    one.key = keys.of(one)
    return one


def judged(folder):
    one, base = served(folder), served(folder, "b")
    return keys.of_judgements(one.recipe.judge, one, base)


@pytest.mark.parametrize("edited", ["model/model.safetensors", "reward.py", "env.py"])
def test_an_edited_file_has_the_model_asked_again(folder, edited):
    before, size = served(folder).key, (folder / edited).stat()
    data = (folder / edited).read_bytes()
    os.utime(folder / edited, (1, 1))
    assert served(folder).key == before, "a file that is only younger has the same in it"
    (folder / edited).write_bytes(data[:-1] + b"#")
    os.utime(folder / edited, ns=(size.st_atime_ns, size.st_mtime_ns))
    assert served(folder).key != before, "of the same size and age"


@pytest.mark.parametrize("edited", ["judge/model.safetensors", "constitution.yaml", "template.yaml"])
def test_an_edited_file_of_the_judge_has_the_judge_asked_again_and_no_model(folder, edited):
    before, answers = judged(folder), served(folder).key
    assert judged(folder) == before
    text = (folder / edited).read_bytes().replace(b"kinder", b"nicer").replace(b"{first}", b"1 {first}")
    (folder / edited).write_bytes(text.replace(b"weights", b"Weights"))
    assert judged(folder) != before and served(folder).key == answers


def test_other_questions_are_another_key_and_another_place_is_not(folder):
    before = served(folder).key
    more = [*PROMPTS, Prompt("heldout-1-cd", np.array([1], np.int32), "3+3=", {"answer": "6"})]
    other = [Prompt("heldout-0-ab", np.array([1, 2], np.int32), "2+2 =", {"answer": "4"})]
    assert len({before, served(folder, prompts=more).key, served(folder, prompts=other).key}) == 3
    assert served(folder, regressions={"accuracy": 0.1}, level=0.01).key == before != served(folder, seed=1).key
    assert served(folder, reference="b").key == before, "log-probabilities are files of their own"
    assert served(folder, rollout={"max_new_tokens": 7}).key != before
    shutil.copytree(folder / "model", folder / "moved")
    assert served(folder, models={"a": {"path": str(folder / "moved")}, "b": {"scratch": "qwen2"}}).key == before


def test_a_model_from_scratch_is_its_recipe_and_seed(folder):
    before = served(folder, "b").key
    (folder / "model" / "model.safetensors").write_bytes(b"written anew")
    assert served(folder, "b").key == before != served(folder, "b", seed=1).key


def test_files_that_settings_name(folder):
    settings = {"a": f"{folder}/env.py:Game", "b": [str(folder / "constitution.yaml")], "c": "x" * 5000, "d": 3}
    named = [contents.contents_of(folder / name) for name in ("env.py", "constitution.yaml")]
    assert contents.files_in(settings) == named
