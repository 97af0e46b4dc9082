"""Adapters in the offline tasks: the same in every ZeRO stage, two rates under LoRA+, results that load."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from pydantic import TypeAdapter
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback
from trl_stages import TINY, Figures, train_settings

from rlpipe.data.source import load_judged, load_preferences, load_sources
from rlpipe.models.load import materialise
from rlpipe.pipelines.offline import trl_worker
from rlpipe.pipelines.offline.preference import run_preference
from rlpipe.pipelines.offline.ray_train import Launch, run_remote
from rlpipe.pipelines.offline.reward_model import run_reward_model
from rlpipe.pipelines.offline.sft import prepare, run_sft
from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.tasks import Task
from rlpipe.recipe.training import Resources

pytestmark = pytest.mark.integration

LORA = {"kind": "lora", "r": 4}
FAST = {"learning_rate": 1e-2, "warmup_steps": 0}
TOKENS = np.arange(6, 30)


def recipe(task, adapter, **settings):
    train = train_settings(max_steps=3, optimizer=FAST) | settings
    data = {"kind": "arithmetic", "heldout": 32}
    given = {"task": task, "model": TINY, "adapter": adapter, "data": data, "train": train}
    return TypeAdapter(Task).validate_python(given)


def run(task, adapter, folder, **settings):
    settings = recipe(task, adapter, **settings)
    return run_stage(settings, materialise(settings.model, settings.seed, folder / "base"), folder / "model")


def run_stage(settings, path, result):
    """What a stage of any offline task reports."""
    task, figures = settings.task, Figures()
    if task == "sft":
        run_sft(settings, path, load_sources(settings.data), result, True, figures)
    elif task == "reward_model":
        run_reward_model(settings, path, load_preferences(settings.data), result, True, figures)
    else:
        records = (load_judged if task == "kto" else load_preferences)(settings.data)
        run_preference(settings, path, records, result, True, figures)
    return figures


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def scores(model):
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)[None]).logits.numpy()


@pytest.mark.parametrize("task", ["sft", "dpo", "kto", "orpo", "reward_model"])
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
    "adapter", [{"kind": "ia3"}, {"kind": "vera", "r": 8}, LORA | {"use_dora": True}, {"kind": "lora_fa", "r": 4}]
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


class _Renumbered:
    def __init__(self, progress, offset):
        self.alive = progress.alive
        self.metrics = lambda step, values: progress.metrics(offset + step, values)


def _train_one_after_another(jobs, progress):
    for number, job in enumerate(jobs):
        trl_worker.train(job, _Renumbered(progress, 100 * number))


def test_two_ranks_learn_as_one_does(tmp_path, ray_cluster):
    alone = run("sft", LORA, tmp_path).of("loss")
    jobs = []
    for stage in (0, 2, 3):
        settings = recipe("sft", LORA, zero_stage=stage, ranks=2, per_device_train_batch_size=8)
        result = tmp_path / f"two-{stage}" / "model"
        result.parent.mkdir()
        jobs.append(prepare(settings, str(tmp_path / "base"), load_sources(settings.data), result))
    figures = Figures()
    run_remote(_train_one_after_another, jobs, Launch("SFT", 2, Resources(), 1, Deadlines()), figures)
    for number, stage in enumerate((0, 2, 3)):
        losses = [v["loss"] for step, v in figures if "loss" in v and number * 100 < step < (number + 1) * 100]
        np.testing.assert_allclose(losses, alone, rtol=1e-4)
        merged = load(tmp_path / f"two-{stage}" / "model")
        np.testing.assert_allclose(scores(merged), scores(load(tmp_path / "model")), atol=1e-4)
