"""What a pipeline's end asks, from what its stages have left."""

import json

import pytest

from rlpipe.pipelines.evaluating.afterwards import comparison_of
from rlpipe.pipelines.run import stages_of
from rlpipe.recipe.load import load
from rlpipe.recipe.rewards import ModelReward


@pytest.fixture
def left(tmp_path):
    """Makes a run directory in which stages have left a model, and evaluations by what each asked."""

    def leave(name, asked):
        recipe = load(name)
        stages = stages_of(recipe, tmp_path)
        for stage, (_, place) in stages.items():
            for part in ("base", "model") if stage == "sft" else ("model",):
                (place / part).mkdir(parents=True)
                (place / part / "config.json").write_text("{}")
            rows = [{"kind": "evaluation", "metrics": {}, "asked": each} for each in asked.get(stage, [])]
            (place / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return recipe, stages

    return leave


def test_stages_that_were_asked_the_same_have_shown_it(left):
    assert comparison_of(*left("arithmetic/pipeline", {"sft": ["a", "a"], "grpo": ["a", "a", "a"]})) is None


@pytest.mark.parametrize("asked", [{"sft": ["a", "a"], "grpo": ["b", "b"]}, {"grpo": ["a", "a"]}, {"sft": ["a"] * 2}])
def test_others_are_asked_what_the_last_one_asks(left, tmp_path, asked):
    recipe, stages = left("arithmetic/pipeline", asked)
    found = comparison_of(recipe, stages)
    assert [(name, model.path) for name, model in found.models.items()] == [
        ("base", str(tmp_path / "stages/sft/base")),
        ("sft", str(tmp_path / "stages/sft/model")),
        ("grpo", str(tmp_path / "stages/grpo/model")),
    ]
    last = recipe.stages["grpo"]
    assert (found.data, found.rewards, found.evaluation) == (last.data, last.rewards, last.evaluation)
    assert found.compared_with == "base"


def test_what_judges_is_not_compared_and_what_it_judges_by_is_found(left, tmp_path):
    found = comparison_of(*left("arithmetic/rlhf", {}))
    assert list(found.models) == ["base", "sft", "ppo"]
    reward = found.rewards.mix[0]
    assert isinstance(reward, ModelReward) and reward.path == str(tmp_path / "stages/reward/model")


def test_a_judge_that_is_a_language_model_is_not_compared_either(left, tmp_path):
    file = tmp_path / "judged.yaml"
    judge = "{kind: judge, template: grade, by: {kind: engine, path: '${stages.judge.model}'}}"
    file.write_text(
        "task: pipeline\nstages:\n  sft: {extends: arithmetic/sft}\n  judge: {extends: arithmetic/sft}\n  grpo:\n"
        "    extends: arithmetic/grpo\n    model: ${stages.sft.model}\n"
        f"    rewards:\n      mix:\n        - {judge}\n"
    )
    assert list(comparison_of(*left(file, {})).models) == ["base", "sft", "grpo"]


def test_a_pipeline_that_compares_by_itself_is_left_alone(left):
    assert comparison_of(*left("arithmetic/rlaif", {})) is None
