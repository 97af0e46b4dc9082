"""A reward model made by one stage of a pipeline rewards the next one: through Ray and in one process."""

import pytest
from trl_stages import TINY

from rlpipe.data.storage import Storage
from rlpipe.observe import events
from rlpipe.pipelines.run import DONE, run
from rlpipe.recipe.schema import adapter

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TRAIN = {"max_steps": 2, "per_device_train_batch_size": 8, "logging_steps": 1, "threads": 1}
DATA = {"kind": "arithmetic", "heldout": 8}


def pipeline():
    """Two rewards by two reward models, one of them in two replicas, beside the true one."""
    models = [
        {"kind": "model", "name": "mine", "path": "${stages.rm.model}", "threads": 1, "ranks": 2},
        {"kind": "model", "name": "same", "path": "${stages.rm.model}", "threads": 1, "weight": 0.5},
    ]
    sft = {
        "task": "sft",
        "model": TINY,
        "data": DATA,
        "train": TRAIN,
        "rewards": {"mix": [*models, {"kind": "exact"}]},
        "rollout": {"engine": "transformers", "max_new_tokens": 4, "threads": 1},
        "evaluation": {"prompts": 8, "pass_at": [], "correct_at": None},
    }
    stages = {"rm": {"task": "reward_model", "model": TINY, "data": DATA, "train": TRAIN}, "sft": sft}
    return adapter().validate_python({"task": "pipeline", "stages": stages})


@pytest.mark.parametrize("debug", [True, pytest.param(False, marks=pytest.mark.soak)], ids=["debug", "ray"])
def test_a_stage_is_rewarded_by_an_earlier_stage_s_model(debug, tmp_path, capsys, request):
    if not debug:
        request.getfixturevalue("ray_cluster")
    assert run(pipeline(), tmp_path / "run", debug) == DONE, capsys.readouterr().out
    found, _ = events.read(Storage(tmp_path / "run" / "stages" / "sft"))
    evaluated = [event["metrics"] for event in found if event["kind"] == "evaluation"]
    assert len(evaluated) == 2
    assert all(metrics["failures"] == 0 and abs(metrics["reward"]) > 0 for metrics in evaluated)
    notes = [event["message"] for event in found if event["kind"] == "note" and "reward" in event["message"]]
    assert [note.split(":")[0] for note in notes] == ["reward `mine`", "reward `same`"]
    assert all("as they were sampled" in note for note in notes)
    output = capsys.readouterr().out
    assert "pair accuracy" in output and "by length alone" in output
