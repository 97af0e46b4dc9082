"""Adapters in the offline tasks: the same in every ZeRO stage, two rates under LoRA+, results that load."""

import numpy as np
import pytest
import torch
from adapter_stages import FAST, LORA, load, on_two_ranks, run, scores
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

from rlpipe.pipelines.offline import trl_worker

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    "task", ["sft", "dpo", *(pytest.param(t, marks=pytest.mark.soak) for t in ("kto", "orpo")), "reward_model"]
)
def test_stages_agree_and_the_merged_model_answers_as_base_and_adapter(task, tmp_path):
    runs = {}
    for stage in (0, 2, 3):
        (tmp_path / str(stage)).mkdir()
        runs[stage] = run(task, LORA, tmp_path / str(stage), zero_stage=stage)
    for stage in (2, 3):
        np.testing.assert_allclose(runs[stage].of("loss"), runs[0].of("loss"), rtol=1e-4)
    assert runs[0].of("trainable_parameters") == [8192 + 64 * (task == "reward_model")]
    folder = tmp_path / "3"
    auto, options = AutoModelForCausalLM, {}
    if task == "reward_model":
        auto, options = AutoModelForSequenceClassification, {"num_labels": 1, "pad_token_id": 0}
    base = auto.from_pretrained(folder / "base", dtype=torch.float32, **options)
    merged = auto.from_pretrained(folder / "model", dtype=torch.float32)
    assert not any("lora" in name or "modules_to_save" in name for name in merged.state_dict())
    before = scores(base)
    adapted = scores(PeftModel.from_pretrained(base, folder / "adapter"))
    np.testing.assert_allclose(scores(merged), adapted, atol=1e-4)
    assert np.abs(adapted - before).max() > 1e-2


def test_with_an_adapter_dpo_s_reference_is_the_base_without_a_second_copy(tmp_path, monkeypatch):
    """With the adapter off the policy says what the precomputed reference says."""
    kept = run("dpo", LORA, tmp_path)
    ready_made = run("dpo", LORA, tmp_path, precompute_ref_log_probs=True)
    for name in ("loss", "rewards/chosen", "heldout_margin"):
        np.testing.assert_allclose(kept.of(name), ready_made.of(name), rtol=1e-3, atol=1e-5)
    assert kept.of("heldout_margin")[0] == 0.0 and abs(kept.of("heldout_margin")[-1]) > 1e-3


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_rates_reach_the_optimizer_that_steps(stage, tmp_path, monkeypatch):
    rates, make = [], trl_worker.reporter

    def watching(trainer, *rest):
        class Watch(TrainerCallback):
            def on_step_end(self, *_, **__):
                rates.append(sorted({group["lr"] for group in trainer.deepspeed.optimizer.param_groups}))

        trainer.add_callback(Watch())
        return make(trainer, *rest)

    monkeypatch.setattr(trl_worker, "reporter", watching)
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    two = run("sft", LORA | {"loraplus_lr_ratio": 8.0}, tmp_path / "two", zero_stage=stage)
    assert len(rates) == 3 and all(b == pytest.approx(8 * a) for a, b in rates[:-1])  # the schedule ends at 0
    one = run("sft", LORA, tmp_path / "one", zero_stage=stage)
    assert abs(two.of("loss")[-1] - one.of("loss")[-1]) > 1e-2


@pytest.mark.parametrize(
    "adapter",
    [
        {"kind": "ia3"},
        {"kind": "vera", "r": 8},
        LORA | {"use_dora": True},
        {"kind": "lora_fa", "r": 4},
        LORA | {"bias": "all"},
        {"kind": "delta_lora", "r": 4, "start_step": 1},
    ],
)
def test_every_kind_learns_the_same_split_over_ranks_or_not(adapter, tmp_path):
    losses = []
    for stage in (0, 3):
        (tmp_path / str(stage)).mkdir()
        losses.append(run("sft", adapter, tmp_path / str(stage), zero_stage=stage).of("loss"))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    base = load(tmp_path / "3" / "base")
    adapted = PeftModel.from_pretrained(base, tmp_path / "3" / "adapter")
    np.testing.assert_allclose(scores(load(tmp_path / "3" / "model")), scores(adapted), atol=1e-4)


def test_pissa_s_adapter_goes_onto_the_base_as_it_was(tmp_path):
    run("sft", LORA | {"init_lora_weights": "pissa"}, tmp_path, zero_stage=2)
    adapted = PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter")
    np.testing.assert_allclose(scores(load(tmp_path / "model")), scores(adapted), atol=1e-4)


def test_delta_lora_is_lora_of_a_larger_scale_under_adam(tmp_path):
    """It adds to the weights update_ratio * scale * (B A - B0 A0), and B0 = 0: so it answers as a LoRA whose
    scale is 1 + update_ratio times as large, whose gradients are as many times larger, which Adam does not see."""
    runs = {}
    for name, adapter in {
        "delta": {"kind": "delta_lora", "r": 4, "lora_alpha": 8, "update_ratio": 0.5},
        "later": {"kind": "delta_lora", "r": 4, "lora_alpha": 8, "update_ratio": 0.5, "start_step": 1},
        "lora": LORA | {"lora_alpha": 12},
    }.items():
        (tmp_path / name).mkdir()
        optimizer = FAST | {"max_grad_norm": 1e9}
        runs[name] = run("sft", adapter, tmp_path / name, zero_stage=2, optimizer=optimizer).of("loss")
    np.testing.assert_allclose(runs["delta"], runs["lora"], rtol=1e-4)
    assert abs(runs["later"][-1] - runs["delta"][-1]) > 1e-4
    for name in ("delta", "later"):
        adapted = PeftModel.from_pretrained(load(tmp_path / name / "base"), tmp_path / name / "adapter")
        np.testing.assert_allclose(scores(load(tmp_path / name / "model")), scores(adapted), atol=1e-4)


@pytest.mark.soak
def test_two_ranks_move_the_same_weights(tmp_path, ray_cluster):
    adapter = {"kind": "delta_lora", "r": 4, "start_step": 1}
    alone = run("sft", adapter, tmp_path).of("loss")
    for folder, losses in on_two_ranks(adapter, tmp_path, stages=(3,)):
        np.testing.assert_allclose(losses, alone, rtol=1e-4)
        np.testing.assert_allclose(scores(load(folder / "model")), scores(load(tmp_path / "model")), atol=1e-4)


def test_two_ranks_learn_as_one_does(tmp_path, ray_cluster):
    alone = run("sft", LORA, tmp_path).of("loss")
    for folder, losses in on_two_ranks(LORA, tmp_path, stages=(0, 2, 3)):
        np.testing.assert_allclose(losses, alone, rtol=1e-4)
        np.testing.assert_allclose(scores(load(folder / "model")), scores(load(tmp_path / "model")), atol=1e-4)
