"""Study files: which cells they make, what those are run with, and what a mistake is answered with."""

# ruff: noqa: E501  (messages stand as people see them)

from pathlib import Path

import pytest

from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load
from rlpipe.recipe.resolved import to_yaml
from rlpipe.recipe.shipped import find, folder, names, studies
from rlpipe.recipe.study import written
from rlpipe.recipe.study_file import read
from rlpipe.recipe.study_plan import digest_of, plan
from rlpipe.recipe.yaml_text import scalar

RECIPE = "task: sft\nname: small\nmodel: {scratch: qwen2}\ndata: {kind: arithmetic}\ntrain: {max_steps: 5}\n"
STUDY = """\
name: rates
recipe: r.yaml
changes:
  - train.max_steps=7
grid:
  train.optimizer.learning_rate: [3e-4, 1e-3]
  width:
    narrow: [model.hidden_size=128, model.heads=4]
    wide++: []
  seed: [0, 1]
repeat_over: seed
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RECIPE)


def problems(text: str, *typed: str) -> list[str]:
    Path("s.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        plan(read("s.yaml"), typed)
    return str(caught.value).splitlines()


def planned(text: str = STUDY, *typed: str):
    Path("s.yaml").write_text(text)
    return plan(read("s.yaml"), typed)


class TestCells:
    def test_order_and_names(self):
        assert [cell.name for cell in planned().cells] == [
            "learning_rate-0.0003_narrow_seed-0",
            "learning_rate-0.0003_narrow_seed-1",
            "learning_rate-0.0003_wide++_seed-0",
            "learning_rate-0.0003_wide++_seed-1",
            "learning_rate-0.001_narrow_seed-0",
            "learning_rate-0.001_narrow_seed-1",
            "learning_rate-0.001_wide++_seed-0",
            "learning_rate-0.001_wide++_seed-1",
        ]

    def test_what_is_excluded_is_no_cell(self):
        excluded = "exclude:\n  - {width: narrow, seed: 1}\n  - {train.optimizer.learning_rate: 1e-3, width: wide++}\n"
        assert [cell.name for cell in planned(STUDY + excluded).cells] == [
            "learning_rate-0.0003_narrow_seed-0",
            "learning_rate-0.0003_wide++_seed-0",
            "learning_rate-0.0003_wide++_seed-1",
            "learning_rate-0.001_narrow_seed-0",
        ]

    def test_axes_and_changes(self):
        cell = planned(STUDY, "train.max_steps=9").cells[1]
        assert cell.cell.axes == {"train.optimizer.learning_rate": "0.0003", "width": "narrow", "seed": "1"}
        assert cell.changes == (
            "train.max_steps=7",
            "train.max_steps=9",
            "train.optimizer.learning_rate=0.0003",
            "model.hidden_size=128",
            "model.heads=4",
            "seed=1",
        )

    def test_what_is_compared(self):
        assert planned().compared == ["train.optimizer.learning_rate", "width"]
        assert planned(STUDY.replace("repeat_over: seed\n", "")).compared[-1] == "seed"

    def test_keys_with_the_same_last_part_keep_all_of_it(self):
        text = "recipe: r.yaml\ngrid:\n  train.threads: [1]\n  rollout.threads: [1, 2]\n"
        assert [cell.name for cell in planned(text).cells] == [
            "train.threads-1_rollout.threads-1",
            "train.threads-1_rollout.threads-2",
        ]

    def test_values_become_folder_names(self):
        text = "recipe: r.yaml\ngrid:\n  model.path: [a/b c, '1']\n  rewards: [null]\n  train.packing: [true]\n"
        assert [cell.name for cell in planned(text).cells] == [
            "path-a-b-c_rewards-null_packing-true",
            "path-1_rewards-null_packing-true",
        ]

    @pytest.mark.parametrize(
        "value", ["text", "1", "true", "[1]", "{a: 1}", 'say "x"', "'q'", 3, 1e-5, True, None, "null"]
    )
    def test_a_value_is_read_back_as_it_was(self, value):
        from rlpipe.recipe.overrides import _value

        assert _value(written(value)) == value
        assert type(_value(written(value))) is type(value)

    def test_plain_text_is_not_quoted(self):
        assert written("runs/a") == "runs/a"
        assert scalar(written(1e-4)) == 1e-4


class TestDigest:
    def test_it_is_of_the_recipe_that_the_run_writes(self):
        cell = planned().cells[0]
        assert cell.digest == digest_of(to_yaml(load("r.yaml", cell.changes)))
        assert digest_of("a: 1\n") == "37b128c59f1f"

    def test_an_edit_changes_the_cells_it_concerns(self):
        before = [cell.digest for cell in planned().cells]
        after = [cell.digest for cell in planned(STUDY.replace("hidden_size=128", "hidden_size=192")).cells]
        assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True, True] * 2

    def test_a_comment_changes_nothing(self):
        before = [cell.digest for cell in planned().cells]
        Path("r.yaml").write_text("# words\n" + RECIPE)
        assert [cell.digest for cell in planned().cells] == before


class TestMistakes:
    @pytest.mark.parametrize(
        ("old", "new", "expected"),
        [
            ("recipe: r.yaml\n", "", ["s.yaml:1: recipe: missing; expected text"]),
            ("name: rates", "nmae: rates", ["s.yaml:1: nmae: `nmae` is not a key of a study; did you mean `name`?"]),
            ("repeat_over: seed", "repeat_over: sed", ["s.yaml:11: repeat_over: `sed` is no axis of `grid`; expected one of `train.optimizer.learning_rate`, `width`, `seed`"]),
            ("repeat_over: seed", "debug: yes", ["s.yaml:11: debug: expected true or false"]),
            ("[3e-4, 1e-3]", "3e-4", ["s.yaml:6: grid.train.optimizer.learning_rate: expected a list of values (`seed: [0, 1]`), or labels with a list of changes each (`ppo: [algorithm.name=ppo]`)"]),
            ("[3e-4, 1e-3]", "[]", ["s.yaml:6: grid.train.optimizer.learning_rate: expected a list of values (`seed: [0, 1]`), or labels with a list of changes each (`ppo: [algorithm.name=ppo]`)"]),
            ("wide++: []", "wide/er: []", ["s.yaml:7: grid.width: `wide/er` becomes part of a folder's name; expected letters, digits, `-`, `_`, `.`, `+`"]),
            ("  seed: [0, 1]", "  seed: [0, 0]", ["s.yaml:5: grid: 2 cells would be called `" + name + "`; give the values labels that differ" for name in ("learning_rate-0.0003_narrow_seed-0", "learning_rate-0.0003_wide++_seed-0", "learning_rate-0.001_narrow_seed-0", "learning_rate-0.001_wide++_seed-0")]),
            ("  width:", "  seconds:", ["s.yaml:7: grid.seconds: `seconds` is a column of results.csv already; name the axis otherwise"]),
            ("repeat_over: seed", "exclude: [{wdith: narrow}]", ["s.yaml:11: exclude.0: `wdith` is no axis of `grid`; expected one of `train.optimizer.learning_rate`, `width`, `seed`"]),
            ("repeat_over: seed", "exclude:\n  - {width: narrow}\n  - {seed: 2}", ["s.yaml:13: exclude.1: `seed` is never 2; expected one of `0`, `1`"]),
            ("repeat_over: seed", "exclude: [{seed: 0}, {seed: 1}]", ["s.yaml:11: exclude: leaves out every cell"]),
            ("name: rates", "name: rates\nname: more", ["s.yaml:2: name: this key stands twice; the first is at s.yaml:1"]),
        ],
    )  # fmt: skip
    def test_of_the_file(self, old, new, expected):
        assert old in STUDY
        assert problems(STUDY.replace(old, new)) == expected

    def test_of_the_recipe_that_is_not_there(self, tmp_path):
        assert problems(STUDY.replace("recipe: r.yaml", "recipe: q.yaml")) == [
            f"s.yaml:2: recipe: no recipe file `q.yaml` in {tmp_path}; `rlpipe recipes list` shows those that come with it"
        ]

    def test_of_the_cells_recipes_all_at_once_each_at_its_line(self):
        text = STUDY.replace("max_steps=7", "max_step=7").replace("heads=4", "heads=3").replace("[0, 1]", "[0, x]")
        assert problems(text) == [
            "s.yaml:4: train.max_step: `max_step` is not a key of `train`; did you mean `train.max_steps`? (in every cell)",
            "s.yaml:8: model: hidden_size=128 does not divide into heads=3 (in cells learning_rate-0.0003_narrow_seed-0, learning_rate-0.0003_narrow_seed-x, learning_rate-0.001_narrow_seed-0 and 1 more)",
            "s.yaml:10: seed: expected a whole number, found the text `x` (in cells learning_rate-0.0003_narrow_seed-x, learning_rate-0.0003_wide++_seed-x, learning_rate-0.001_narrow_seed-x and 1 more)",
        ]

    def test_of_the_recipe_itself_and_of_typed_changes(self):
        Path("r.yaml").write_text(RECIPE + "seeed: 3\n")
        assert problems(STUDY, "train.lr=1") == [
            "override `train.lr=1`: train.lr: `lr` is not a key of `train`; did you mean `train.optimizer.learning_rate`? (in every cell)",
            "r.yaml:6: seeed: `seeed` is not a key of the recipe; did you mean `seed`? (in every cell)",
        ]

    def test_of_what_is_not_here(self, tmp_path):
        text = "recipe: r.yaml\ngrid:\n  seed: [0, 1]\n  start:\n    scratch: []\n    trained: [model.path=runs/m]\n"
        assert [str(problem) for problem in planned(text).missing] == [
            f"s.yaml:6: model.path: no file or folder `runs/m` in {tmp_path}; run the recipe that makes it first, or give another with `model.path=PATH` (in cells seed-0_trained, seed-1_trained)"
        ]

    def test_an_unknown_study(self):
        with pytest.raises(RecipeError, match=r"no study file `algorithm`; did you mean `studies/algorithms`\?"):
            read("algorithm")
        with pytest.raises(RecipeError, match="`arithmetic/grpo` is a recipe; `rlpipe run arithmetic/grpo` runs it"):
            read("arithmetic/grpo")

    def test_a_study_is_no_recipe(self):
        with pytest.raises(RecipeError, match="is a study; `rlpipe study studies/algorithms` runs it"):
            load("studies/algorithms")


class TestShipped:
    def test_studies_are_not_among_the_recipes(self):
        assert "studies/algorithms" in studies()
        assert not set(studies()) & set(names())

    @pytest.mark.parametrize("name", studies())
    def test_every_study_reads_and_explains_itself(self, name):
        found = read(name)
        assert find(found.study.recipe, found.root.place).is_file()
        header = (folder() / f"{name}.yaml").read_text().split("\n\n")[0]
        assert all(line.startswith("#") for line in header.splitlines())
        for part in ("What it does", "What it needs", f"rlpipe study recipes/{name}.yaml", "Healthy run"):
            assert part in header

    def test_the_algorithms(self):
        cells = [cell.name for cell in read("studies/algorithms").cells()]
        assert len(cells) == 24
        assert cells[:4] == ["ppo_seed-0", "ppo_seed-1", "ppo_seed-2", "grpo_seed-0"]
        assert cells[9] == "reinforce++_seed-0"

    def test_the_adapters(self):
        cells = [cell.name for cell in read("studies/adapters").cells()]
        kinds = {name.removesuffix("_arithmetic") for name in cells if name.endswith("_arithmetic")}
        assert cells[:2] == ["full_arithmetic", "full_stories"] and len(cells) == 2 * len(kinds) - 2
        on_stories = {name.removesuffix("_stories") for name in cells if name.endswith("_stories")}
        assert kinds - on_stories == {"bitfit", "lora_bias"}
