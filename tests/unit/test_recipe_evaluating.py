"""What a recipe of `task: eval` refuses, and what the short form of `rlpipe eval` stands for."""

import json
from dataclasses import replace

import pytest

from rlpipe.pipelines.evaluating.asked import Options, Unclear, split, values
from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load, made

JUDGE = "judge={kind: judge, by: {kind: engine, path: FOLDER}}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["baseline=grpoo"], "baseline=grpoo is none of the models; they are base, sft, grpo"),
        (["reference=x"], "reference=x is none of the models"),
        (["regressions.acc=0.1"], r"regressions.acc is not measured here; what is: reward, accuracy, pass@1, pass@4"),
        (["regressions.perplexity=1", "reference=null"], "regressions.perplexity is not measured here"),
        (["evaluation.temperature=0.7"], "set it to 1, or leave reference out"),
        (["part=all"], "data.kind=arithmetic makes its own: leave part out"),
        (["win_by=length"], "win_by=length is no reward of the mix; its rewards are exact"),
        (["refusals=['(']"], r"`\(` is no regular expression"),
        (["models.sft.pth=x"], "did you mean `models.sft.path`"),
        ([JUDGE, "win_by=exact"], "leave one of the two out"),
        ([JUDGE.replace("by:", "template: grade, by:")], "it has to compare two"),
        (["rewards.mix=[{kind: judge, by: {kind: engine, path: F}}]"], "put it under `judge`"),
        (["rewards.mix=[{kind: environment}]"], "environment.kind=single_turn gives none"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        load("arithmetic/eval", changes)


def test_one_model_has_nothing_to_be_worse_than(tmp_path):
    file = tmp_path / "one.yaml"
    asked = "data: {kind: arithmetic}\nrewards: {mix: [{kind: exact}]}\n"
    file.write_text(f"task: eval\nmodels: {{only: {{scratch: qwen2}}}}\n{asked}regressions: {{accuracy: 0.1}}\n")
    with pytest.raises(RecipeError, match="there is one model, and nothing that it could be worse than"):
        load(file)


def test_a_stage_that_compares_makes_no_model(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text(
        "task: pipeline\nstages:\n  eval: {extends: arithmetic/eval}\n"
        "  grpo: {extends: arithmetic/grpo, model: '${stages.eval.model}'}\n"
    )
    with pytest.raises(RecipeError, match=r"stage `eval` \(task eval\) compares models and makes none"):
        load(file)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs and an adapter, as far as anybody looks."""
    monkeypatch.chdir(tmp_path)
    for name, recipe in (("old", "arithmetic/sft"), ("new", "arithmetic/grpo")):
        folder = tmp_path / "runs" / name / "model"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        from rlpipe.recipe.resolved import to_yaml

        text = to_yaml(load(recipe, ["model.path=runs/old/model"] if name == "new" else []))
        (tmp_path / "runs" / name / "recipe.yaml").write_text(text)
    adapter = tmp_path / "runs" / "new" / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "runs/old/model"}))
    return tmp_path


NONE = Options(None, None, None, None, ())


def test_runs_alone_are_asked_like_the_last_of_them(runs):
    models, changes = split(["runs/old", "tuned=runs/new", "evaluation.prompts=7", "seed=3"])
    recipe = made(values(models, NONE), changes).recipe
    assert [(name, model.path) for name, model in recipe.models.items()] == [
        ("old", str(runs / "runs/old/model")),
        ("tuned", str(runs / "runs/new/model")),
    ]
    like = load("arithmetic/grpo")
    assert (recipe.data, recipe.rewards, recipe.rollout) == (like.data, like.rewards, like.rollout)
    assert (recipe.evaluation.prompts, recipe.seed, recipe.compared_with) == (7, 3, "old")


def test_options_are_keys_of_the_recipe(runs):
    (runs / "test.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    options = Options("test.jsonl", "runs/old", "new", "old", ("accuracy=0.02", "refusals=0"))
    recipe = made(values(split(["runs/old", "runs/new"])[0], options)).recipe
    assert recipe.data.path == str(runs / "test.jsonl") and recipe.part == "all"
    assert (recipe.baseline, recipe.reference) == ("new", "old")
    assert recipe.regressions == {"accuracy": 0.02, "refusals": 0.0}
    assert recipe.evaluation.prompts == load("arithmetic/sft").evaluation.prompts


def test_an_adapter_stands_for_its_base_with_it(runs):
    recipe = made(values(split(["runs/old", "runs/new/adapter"])[0], NONE), ["rewards={mix: [{kind: exact}]}"]).recipe
    assert recipe.models["new"].path == str(runs / "runs/old/model")
    assert recipe.models["new"].adapter == str(runs / "runs/new/adapter")


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["a=runs/old", "a=runs/new"], NONE, "two models are called a"),
        (["runs/nothing"], NONE, "there is no folder runs/nothing"),
        ([], NONE, "no model is given"),
        (["runs/old"], Options(None, "runs/nothing", None, None, ()), "--like runs/nothing: there is no run"),
        (["runs/old", "runs/new"], Options(None, None, None, None, ("accuracy",)), "expected METRIC=LOSS"),
    ],
)
def test_what_is_unclear_is_told(runs, words, options, message):
    with pytest.raises(Unclear, match=message):
        values(split(words)[0], options)


def test_references_of_a_stage_are_the_run_s(runs):
    """A reward model of an earlier stage judges, by where that stage has put it."""
    from rlpipe.recipe.resolved import to_yaml

    (runs / "runs" / "rlhf").mkdir()
    (runs / "runs" / "rlhf" / "recipe.yaml").write_text(to_yaml(load("arithmetic/rlhf")))
    found = made(values([("", "runs/old"), ("", "runs/new")], replace(NONE, like="runs/rlhf")))
    assert found.recipe.rewards.mix[0].path.endswith("runs/rlhf/stages/reward/model")


def test_a_run_with_labels_is_asked_as_its_labels_were(runs):
    from rlpipe.recipe.resolved import to_yaml

    recipe = load("constitutional/rlaif", ["stages.labels.model.path=m", "stages.dpo.model.path=m"])
    (runs / "runs" / "labelled").mkdir()
    (runs / "runs" / "labelled" / "recipe.yaml").write_text(to_yaml(recipe))
    found = made(values([("", "runs/old"), ("", "runs/new")], replace(NONE, like="runs/labelled"))).recipe
    assert (found.judge, found.rewards) == (recipe.stages["labels"].rewards.mix[0], None)
    assert found.data == recipe.stages["labels"].data
