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


def test_without_rewards_models_are_asked_what_was_labelled_and_judged_as_it_was(left):
    recipe, stages = left("constitutional/rlaif", {})
    found, labels = comparison_of(recipe, stages), recipe.stages["labels"]
    assert list(found.models) == ["base", "dpo"]
    assert (found.data, found.judge, found.rewards) == (labels.data, labels.rewards.mix[0], None)
    assert (found.evaluation.prompts, found.rollout) == (8, labels.rollout)
    assert list(found.measured()) == ["win_rate", "failure_rate", "refusals"]


def test_models_that_learned_revisions_answer_without_being_asked_for_any(left):
    recipe, stages = left("constitutional/revise", {})
    found = comparison_of(recipe, stages)
    assert list(found.models) == ["base", "sft"]
    assert found.environment.kind == "single_turn"
    assert (found.judge, found.rewards) == (None, None)  # the function that picks revisions looks at their turns


def test_models_that_learned_from_a_specification_answer_without_it_and_the_judge_sees_it(left):
    recipe, stages = left("constitutional/deliberative", {})
    found, answers = comparison_of(recipe, stages), recipe.stages["answers"]
    assert (found.guidance, found.rewards.mix) == (answers.guidance, answers.rewards.mix)
    assert found.evaluation.correct_at == answers.labels.accept_at == 0.5


def test_gold_labels_alone_count(left, tmp_path):
    """Beside a judge that compares they have weight 0, and without it there is nothing else."""
    file = tmp_path / "gold.yaml"
    file.write_text(
        "task: pipeline\nstages:\n  labels:\n    task: label\n    model: {scratch: qwen2}\n"
        "    data: {kind: arithmetic}\n    rewards:\n      mix:\n"
        "        - {kind: judge, by: {kind: engine, path: m}}\n        - {kind: exact, weight: 0}\n"
        "    labels: {gold: exact}\n"
        "  dpo:\n    task: dpo\n    model: {scratch: qwen2}\n"
        "    data: {kind: records, path: '${stages.labels.preferences}'}\n    train: {max_steps: 1}\n"
    )
    found = comparison_of(*left(file, {}))
    assert [(reward.name, reward.weight) for reward in found.rewards.mix] == [("exact", 1.0)]
    assert (found.judge.name, found.evaluation.prompts, found.evaluation.correct_at) == ("judge", 256, 1.0)


@pytest.mark.parametrize(("row", "asked"), [('{"prompt": "1+1=", "completion": "2"}', True), ('{"text": "1"}', False)])
def test_where_nobody_judges_answers_are_shown_if_there_are_prompts(left, tmp_path, row, asked):
    (tmp_path / "data.jsonl").write_text(f"{row}\n" * 4)
    file = tmp_path / "plain.yaml"
    file.write_text(
        "task: pipeline\nstages:\n  sft:\n    task: sft\n    model: {scratch: qwen2}\n"
        "    data: {kind: records, path: data.jsonl, heldout: {count: 2}}\n    train: {max_steps: 1}\n"
    )
    found = comparison_of(*left(file, {}))
    assert (found is not None) == asked
    if asked:
        assert (found.rewards, found.judge, list(found.models)) == (None, None, ["base", "sft"])


def test_what_is_right_is_judged_by_the_same_sum_or_not_at_all(left):
    """`accept_at` of revise_7b is of two rewards, of which one looks at the turns of a revision."""
    recipe, stages = left("constitutional/revise_7b", {})
    assert recipe.stages["revisions"].labels.accept_at == 1.5
    found = comparison_of(recipe, stages)
    assert [reward.name for reward in found.rewards.mix] == ["judge"]
    assert found.evaluation.correct_at is None
    assert found.judge_failure_rate == recipe.stages["revisions"].rewards.max_failure_rate


def test_a_judge_that_compares_a_group_in_training_compares_models_at_the_end(left, tmp_path):
    file = tmp_path / "judged.yaml"
    file.write_text(
        "task: pipeline\nstages:\n  sft: {extends: arithmetic/sft}\n  grpo:\n    extends: arithmetic/grpo\n"
        "    model: ${stages.sft.model}\n    rewards:\n      mix:\n"
        "        - {kind: judge, by: {kind: engine, path: m}}\n        - {kind: exact, weight: 0}\n"
    )
    found = comparison_of(*left(file, {}))
    assert (found.judge.name, [reward.name for reward in found.rewards.mix]) == ("judge", ["exact"])


@pytest.mark.parametrize(("gold", "right"), [("", (None, None)), (", gold: exact", ("exact", 1.0))])
def test_of_several_rewards_that_were_only_watched_none_says_what_is_right_unless_it_is_gold(
    left, tmp_path, gold, right
):
    file = tmp_path / "watched.yaml"
    file.write_text(
        "task: pipeline\nstages:\n  labels:\n    task: label\n    model: {scratch: qwen2}\n"
        "    data: {kind: arithmetic}\n    rewards:\n      mix:\n        - {kind: judge, by: {kind: engine, path: m}}\n"
        "        - {kind: exact, weight: 0}\n        - {kind: regex, name: digits, pattern: x, weight: 0}\n"
        f"    labels: {{prompts: 4{gold}}}\n"
        "  sft:\n    task: sft\n    model: {scratch: qwen2}\n"
        "    data: {kind: records, path: '${stages.labels.best}'}\n    train: {max_steps: 1}\n"
    )
    found = comparison_of(*left(file, {})).evaluation
    assert (found.correct_by, found.correct_at) == right


def test_an_adapter_is_shown_on_the_model_of_the_stage_before(left, tmp_path):
    file = tmp_path / "adapted.yaml"
    file.write_text(
        "task: pipeline\nstages:\n  sft: {extends: arithmetic/sft}\n"
        "  more:\n    extends: arithmetic/sft\n    model: ${stages.sft.model}\n"
    )
    recipe, stages = left(file, {})
    place = stages["more"][1]
    (place / "model" / "config.json").unlink()
    (place / "adapter").mkdir()
    (place / "adapter" / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}')
    found = comparison_of(recipe, stages).models["more"]
    assert (found.path, found.adapter) == (str(stages["sft"][1] / "model"), str(place / "adapter"))


def test_a_judge_in_training_says_nothing_of_what_is_asked(left, tmp_path):
    """Its questions are comparisons; the pipeline's prompts are those of the stage before."""
    file = tmp_path / "judge.yaml"
    file.write_text("task: pipeline\nstages:\n  sft: {extends: arithmetic/sft}\n  judge: {extends: arithmetic/judge}\n")
    assert comparison_of(*left(file, {})).data.kind == "arithmetic"


def test_where_no_stage_has_engines_answers_may_be_longer_than_sums_and_vllm_serves_what_it_can(left, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n' * 4)
    file = tmp_path / "plain.yaml"
    file.write_text(
        "task: pipeline\nstages:\n  sft:\n    task: sft\n    model: {scratch: qwen2}\n"
        "    data: {kind: records, path: data.jsonl, heldout: {count: 2}}\n    train: {max_steps: 1}\n"
    )
    recipe, stages = left(file, {})
    rollout = comparison_of(recipe, stages).rollout
    assert (rollout.max_new_tokens, rollout.engine) == (128, "vllm")
    place = stages["sft"][1]
    (place / "model" / "config.json").unlink()
    (place / "adapter").mkdir()
    (place / "adapter" / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}')
    found = comparison_of(recipe, stages)
    assert (found.rollout.engine, found.models["sft"].adapter) == ("transformers", str(place / "adapter"))
