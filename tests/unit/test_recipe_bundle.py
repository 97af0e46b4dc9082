"""What a job takes along."""

from pathlib import Path

import pytest

from rlpipe.recipe import bundle
from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load, read

RECIPE = """
task: rl
name: sums
model: {path: %s}
data: {kind: records, path: train.jsonl, heldout: {path: %s}}
rewards:
  mix:
  - {kind: python, name: own, function: own.py:score}
  - {kind: python, name: other, function: kept.deep:score}
schedule: {steps: 3, prompts_per_step: 8}
algorithm: {name: grpo, group_size: 4}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a recipe and what it names; the working directory is another, with a package."""
    here, elsewhere = tmp_path / "recipes", tmp_path / "work"
    (here / "model").mkdir(parents=True)
    (here / "model" / "config.json").write_text("{}")
    (elsewhere / "kept").mkdir(parents=True)
    (elsewhere / "kept" / "__init__.py").touch()
    (elsewhere / "kept" / "deep.py").write_text("def score(): ...\n")
    (here / "train.jsonl").write_text('{"prompt": "1+1="}\n')
    (here / "own.py").write_text("import json, helper\nfrom tools.sums import add\n\ndef score(): ...\n")
    (here / "helper.py").write_text("import second\n")
    (here / "second.py").touch()
    (here / "unrelated.py").touch()
    (here / "tools").mkdir()
    (here / "tools" / "__init__.py").touch()
    (here / "tools" / "sums.py").write_text("def add(): ...\n")
    monkeypatch.chdir(elsewhere)
    return here


def packed(place: Path, model: str = "model", heldout: str = "/on/the/cluster.jsonl", shared: tuple[Path, ...] = ()):
    (place / "my.yaml").write_text(RECIPE % (model, heldout))
    return bundle.write(read(place / "my.yaml", ["schedule.steps=7"]), place.parent / "job", shared)


def test_files_modules_and_models_go_along(place):
    found = packed(place)
    names = sorted(path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file())
    assert names == [
        "files-0/helper.py", "files-0/model/config.json", "files-0/own.py", "files-0/second.py",
        "files-0/tools/__init__.py", "files-0/tools/sums.py", "files-0/train.jsonl",
        "kept/__init__.py", "kept/deep.py", "recipe.yaml",
    ]  # fmt: skip
    assert found.left == ["/on/the/cluster.jsonl"]


def test_the_recipe_there_is_the_recipe_here_with_other_paths(place):
    folder = packed(place).folder
    there, here = load(folder / "recipe.yaml"), load(place / "my.yaml", ["schedule.steps=7"])
    assert there.model.path == str(folder / "files-0" / "model")
    assert there.data.path == str(folder / "files-0" / "train.jsonl")
    assert there.rewards.mix[0].function == f"{folder}/files-0/own.py:score"
    same = there.model_dump() | {key: here.model_dump()[key] for key in ("model", "data", "rewards")}
    assert same == here.model_dump() and there.schedule.steps == 7


def test_what_the_cluster_sees_too_stays_where_it_is(place):
    found = packed(place, shared=(place / "model",))
    assert found.left == [str(place / "model"), "/on/the/cluster.jsonl"]
    assert load(found.folder / "recipe.yaml").model.path == str(place / "model")


def test_a_relative_path_that_is_not_here_is_a_mistake(place):
    with pytest.raises(RecipeError, match=r"my\.yaml:5: data\.heldout\.path: no file or folder `heldout\.jsonl`"):
        packed(place, heldout="heldout.jsonl")


def test_large_files_are_refused_with_the_place_to_put_them(place, monkeypatch):
    monkeypatch.setattr(bundle, "LARGEST_BYTES", 2**20)
    with open(place / "model" / "model.safetensors", "wb") as file:
        file.truncate(3 * 2**20)
    said = rf"are 3 MiB together \(.*model alone 3\), and a job takes 1 MiB along.* --shared {place}$"
    with pytest.raises(RecipeError, match=said):
        packed(place)


def test_credentials_do_not_go_along(place):
    secret = "hf_" + "A" * 20
    (place / "my.yaml").write_text(RECIPE % ("model", "/on/the/cluster.jsonl") + f"tracking: {{wandb: {secret}}}\n")
    with pytest.raises(RecipeError) as raised:
        bundle.write(read(place / "my.yaml"), place.parent / "job")
    [problem] = raised.value.problems
    assert problem.key == "tracking.wandb" and "does not travel with a job" in problem.message
    assert secret not in str(raised.value)
