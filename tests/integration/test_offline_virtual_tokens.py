"""Adapters that do not merge, in the offline tasks: the same split over ranks or not, and the only result."""

import json

import numpy as np
import pytest
from adapter_stages import load, on_two_ranks, run, scores
from peft import PeftModel
from trl_stages import TINY

from rlpipe.data.storage import Storage
from rlpipe.observe import events
from rlpipe.pipelines import run as runs
from rlpipe.pipelines.chat import Style, open_chat
from rlpipe.recipe.load import load as load_recipe

pytestmark = pytest.mark.integration

KINDS = {
    "prompt": {"kind": "prompt_tuning", "num_virtual_tokens": 4},
    "prefix": {"kind": "prefix_tuning", "num_virtual_tokens": 4},
    "projected": {"kind": "prefix_tuning", "num_virtual_tokens": 4, "prefix_projection": True},
    "bottleneck": {"kind": "bottleneck", "reduction_factor": 8, "placement": "houlsby"},
}
TRAINED = {
    "prompt": 4 * 64,
    "prefix": 4 * 2 * 2 * 32,
    "projected": 4 * 32 + 32 * 33 + 33 * 2 * 2 * 32,
    "bottleneck": 2 * 2 * (65 * 8 + 9 * 64),
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("prompt", {"gradient_checkpointing": True}),
        ("prefix", {}),
        ("projected", {}),
        ("bottleneck", {"gradient_checkpointing": True}),
    ],
)
def test_stages_agree_and_only_the_adapter_is_left(name, changes, tmp_path):
    runs, results = {}, []
    for stage, more in ((0, changes), (3, {})):
        folder = tmp_path / str(stage)
        folder.mkdir()
        runs[stage] = run("sft", KINDS[name], folder, zero_stage=stage, **more)
        assert not (folder / "model").exists()
        base = load(folder / "base")
        before = scores(base)
        results.append(scores(PeftModel.from_pretrained(base, folder / "adapter"))[:, -before.shape[1] :])
    for metric in ("loss", "heldout_loss"):
        np.testing.assert_allclose(runs[3].of(metric), runs[0].of(metric), rtol=1e-4)
    assert runs[3].of("trainable_parameters") == [TRAINED[name]]
    np.testing.assert_allclose(results[1], results[0], atol=1e-4)
    assert np.abs(results[0] - before).max() > 1e-2


@pytest.mark.parametrize(
    ("name", "task"), [("prefix", "kto"), ("bottleneck", "kto"), ("prompt", "orpo"), ("prompt", "cpo")]
)
def test_preferences(name, task, tmp_path):
    figures = run(task, KINDS[name], tmp_path)
    assert figures.of("trainable_parameters") == [TRAINED[name]]
    assert figures.of("heldout_margin")[0] != figures.of("heldout_margin")[-1]


def test_dpo_s_reference_is_the_base(tmp_path):
    """With the adapter off the policy says what the precomputed reference says, which it does not at first."""
    kept = run("dpo", KINDS["prompt"], tmp_path)
    ready_made = run("dpo", KINDS["prompt"], tmp_path, precompute_ref_log_probs=True)
    for metric in ("loss", "rewards/chosen", "heldout_margin"):
        np.testing.assert_allclose(kept.of(metric), ready_made.of(metric), rtol=1e-3, atol=1e-5)
    assert abs(kept.of("heldout_margin")[0]) > 1e-3


@pytest.mark.soak
def test_two_ranks_learn_bottlenecks_as_one_does(tmp_path, ray_cluster):
    alone = run("sft", KINDS["bottleneck"], tmp_path).of("loss")
    expected = PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter")
    for folder, losses in on_two_ranks(KINDS["bottleneck"], tmp_path, stages=(2,)):
        np.testing.assert_allclose(losses, alone, rtol=1e-4)
        found = PeftModel.from_pretrained(load(tmp_path / "base"), folder / "adapter")
        np.testing.assert_allclose(scores(found), scores(expected), atol=1e-4)


@pytest.mark.parametrize("name", ["prefix", "bottleneck"])
def test_a_run_is_evaluated_with_its_adapter_which_is_all_it_leaves(name, tmp_path):
    changes = [
        f"model={json.dumps(TINY)}", f"adapter={json.dumps(KINDS[name])}", "rollout.engine=transformers",
        "rollout.threads=1", "train.threads=1", "train.max_steps=4", "train.optimizer.learning_rate=0.1",
        "evaluation.prompts=8", "evaluation.pass_at=[]", "evaluation.show=8",
    ]  # fmt: skip
    directory = tmp_path / "run"
    assert runs.run(load_recipe("arithmetic/sft", changes), directory, debug=True) == runs.DONE
    assert (directory / "adapter").is_dir() and not (directory / "model").exists()
    found, _ = events.read(Storage(directory))
    before, after = (event["samples"] for event in found if event["kind"] == "evaluation")
    assert [one["completion"] for one in before] != [one["completion"] for one in after]
    for sample in after:
        chat = open_chat(str(directory), None, Style(temperature=0.0, max_new_tokens=8, seed=0))
        problem = sample["prompt"].removeprefix("<|user|>").removesuffix("<|end|><|assistant|>")
        assert chat.answer(problem, lambda _: None) == sample["completion"]
