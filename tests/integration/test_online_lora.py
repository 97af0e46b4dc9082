"""The online loop with a LoRA policy: only the adapter travels, and it is proven that the adapted policy is served."""

import numpy as np
import pytest
import tiny_models
import torch
from peft import AutoPeftModelForCausalLM
from test_online import RECIPE, REWARD, assert_same, events, train
from transformers import AutoModelForCausalLM

from rlpipe.pipelines.run import FAILED, run
from rlpipe.recipe.load import load
from rlpipe.rollout.merged_adapter import MergedAdapter
from rlpipe.weights.verify import Verifier

pytestmark = pytest.mark.integration

LORA = ("adapter={kind: lora, r: 4, lora_alpha: 16}", "algorithm.kl.coefficient=0.1")


@pytest.fixture
def recipe_file(tmp_path):
    (tmp_path / "digits.py").write_text(REWARD)
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    (folder / "digits.py").write_text(REWARD)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "run", train(folder / "recipe.yaml", folder / "run", *LORA)


def test_it_is_on_policy_and_its_reference_is_where_it_began(lora_run):
    _, metrics = lora_run
    for step in metrics.values():
        assert step["mismatch/abs"] < 1e-4 and step["probe_difference_max"] < 1e-3
        assert 8192 * 4 <= step["publish/bytes"] < 8192 * 4 * 1.1, "the adapter in float32, and gaps between tensors"
        assert 0 < step["publish/seconds"] < step["step_seconds"]
    assert metrics[1]["reference_kl"] == pytest.approx(0.0, abs=1e-6) and metrics[3]["reference_kl"] > 1e-4


def test_it_says_how_much_is_trained(lora_run):
    directory, _ = lora_run
    [note] = [e["message"] for e in events(directory, "note") if e["message"].startswith("trainable")]
    # r (in + out) of q, k, v, o, gate, up, down in two layers; beside the 91,072 of the model.
    assert note == "trainable: 8,192 of 99,264 (8.3 %)"


def test_the_result_is_a_plain_model_and_the_adapter_beside_it(lora_run):
    directory, _ = lora_run
    merged, base = (AutoModelForCausalLM.from_pretrained(directory / name) for name in ("model", "base"))
    adapted = AutoPeftModelForCausalLM.from_pretrained(directory / "adapter")
    tokens = np.arange(6, 40, dtype=np.int32)
    ours, theirs, before = (tiny_models.teacher_forced(m, tokens[:1], tokens[1:]) for m in (merged, adapted, base))
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert np.abs(ours - before).max() > 1e-2
    assert torch.equal(merged.get_input_embeddings().weight, base.get_input_embeddings().weight)


@pytest.mark.parametrize("changes", [("publishing.adapter=merged",), ("train.zero_stage=3",)], ids=["merged", "zero-3"])
def test_other_ways_to_the_same_numbers(lora_run, recipe_file, tmp_path, changes):
    assert_same(lora_run[1], train(recipe_file, tmp_path / "run", *LORA, *changes), within=2e-5)


def test_an_engine_that_ignores_its_adapter_stops_the_run(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr(MergedAdapter, "take", lambda self, payload: None)
    assert run(load(recipe_file, LORA), tmp_path / "run", debug=True) == FAILED
    [fault] = events(tmp_path / "run", "fault")
    assert "WeightSyncError" in fault["message"] and "weight version 1" in fault["message"]


MERGED = {
    "dora": "adapter={kind: lora, r: 4, lora_alpha: 16, use_dora: true}",
    "ia3": "adapter={kind: ia3}",
    "vera": "adapter={kind: vera, r: 16, d_initial: 1.0}",
}
VLLM = ("rollout.engine=vllm", "rollout.kv_cache_gib=0.05")


@pytest.fixture
def checked(monkeypatch) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """By version, what trainer and engine answered to the probes of a publish."""
    found, check = {}, Verifier.check

    def noting(self, engine, version, sent, received, trainer, answers):
        found[version] = (np.concatenate(trainer), np.concatenate(answers))
        return check(self, engine, version, sent, received, trainer, answers)

    monkeypatch.setattr(Verifier, "check", noting)
    return found


@pytest.mark.parametrize("engine", [(), pytest.param(VLLM, marks=pytest.mark.slow)], ids=["transformers", "vllm"])
@pytest.mark.parametrize("kind", MERGED)
def test_what_vllm_cannot_serve_is_merged_and_the_served_policy_moves(recipe_file, tmp_path, checked, kind, engine):
    changes = (MERGED[kind], "publishing.adapter=merged", "train.optimizer.learning_rate=5e-2", *engine)
    metrics = train(recipe_file, tmp_path / "run", *changes)
    base = checked[0][1]
    for version in (1, 2, 3):
        trainer, served = checked[version]
        np.testing.assert_allclose(served, trainer, rtol=0, atol=1e-4)
        assert np.abs(served - base).max() > 1e-2, "the base model would answer otherwise"
        assert metrics[version]["publish/bytes"] >= 91072 * 4, "all weights, in float32"


@pytest.mark.slow
def test_vllm_serves_the_adapter(recipe_file, tmp_path, ray_cluster):
    changes = (*VLLM, "train.ranks=2", "train.zero_stage=2")
    metrics = train(recipe_file, tmp_path / "run", *LORA, *changes, debug=False)
    assert metrics[3]["reference_kl"] > 1e-4
    for step in metrics.values():
        assert step["mismatch/abs"] < 1e-4 and step["probe_difference_max"] < 1e-3
