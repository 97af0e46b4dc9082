"""The plan of a labelling: who runs when, on what, and how many are asked."""

from rlpipe.plan.hardware import cluster
from rlpipe.plan.stage import Asked
from rlpipe.plan.whole import plan
from rlpipe.recipe.schema import adapter

JUDGE = {"kind": "judge", "by": {"kind": "engine", "path": "Qwen/Qwen2.5-7B-Instruct", "tensor_parallel": 2}}
BESIDE = {"kind": "judge", "name": "far", "by": {"kind": "openai", "url": "https://host/v1", "model": "m"}}


def planned(gpus="2x80GB", **changes):
    recipe = {
        "task": "label", "model": "Qwen/Qwen2.5-0.5B-Instruct", "data": {"kind": "records", "path": "prompts.jsonl"},
        "rewards": {"mix": [JUDGE, BESIDE]}, "rollout": {"max_new_tokens": 256},
        "labels": {"prompts": 1000}, "responses": {"kind": "sampled", "count": 8},
    }  # fmt: skip
    whole = plan(adapter().validate_python(recipe | changes), cluster(gpus, 1, None), Asked(prompt=256))
    return whole.stages[0]


def test_engines_and_judges_have_the_gpus_one_after_the_other():
    stage = planned()
    assert {scene.title: [(r.name, r.count, r.gpus) for r in scene.roles] for scene in stage.scenes} == {
        "while prompts are answered": [("engine", 1, 1.0)],
        "while responses are judged": [("judge judge", 1, 2)],
    }
    assert stage.fits and stage.held.trained == 0
    assert stage.batches.lines["prompts"] == "1,000 and 256 held-out ones"
    assert set(stage.seconds) == {"prefill", "decoding"}


def test_a_judge_that_does_not_fit_is_told_with_its_key():
    stage = planned(gpus="1x80GB")
    assert not stage.fits
    assert any("rewards.mix.0.by" in one.message for one in stage.shortages)


def test_responses_that_are_read_need_no_engine():
    stage = planned(responses={"kind": "read", "columns": ["chosen", "rejected"]})
    assert [scene.title for scene in stage.scenes] == ["while responses are judged"]
    assert stage.seconds == {}
