"""QLoRA in the offline tasks: the same in every ZeRO stage and over ranks, and what comes out is what was trained."""

import numpy as np
import pytest
import tiny_models
import torch
from adapter_stages import FAST, LORA, load, run_stage, scores, train_one_after_another
from peft import PeftModel
from pydantic import TypeAdapter
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    TrainerCallback,
)
from trl_stages import Figures, train_settings

from rlpipe.data.source import load_sources
from rlpipe.models.folders import adapter_settings
from rlpipe.pipelines.offline import trl_worker
from rlpipe.pipelines.offline.failures import Launch
from rlpipe.pipelines.offline.ray_train import run_remote
from rlpipe.pipelines.offline.sft import prepare
from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.tasks import Task
from rlpipe.recipe.training import Resources

pytestmark = pytest.mark.integration

NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("base"))


def recipe(task, base, adapter=LORA, quantization={"load_in_4bit": True}, **settings):  # noqa: B006 (never changed)
    train = train_settings(max_steps=2, per_device_train_batch_size=8, optimizer=FAST) | settings
    data = {"kind": "arithmetic", "heldout": 8}
    model = {"path": str(base), "quantization": quantization}
    given = {"task": task, "model": model, "adapter": adapter, "data": data, "train": train}
    return TypeAdapter(Task).validate_python(given)


def run(task, base, folder, **settings):
    folder.mkdir(exist_ok=True)
    return run_stage(recipe(task, base, **settings), str(base), folder / "model")


STAGES = {"sft": (2, 3), "dpo": (3,), "kto": (2,), "orpo": (3,), "cpo": (2,), "reward_model": (2, 3)}


@pytest.mark.parametrize("task", STAGES)
def test_the_result_is_the_4_bit_base_with_the_adapter_whatever_the_stage(task, base, tmp_path):
    """The base and the adapter put together by transformers and PEFT alone."""
    runs = {stage: run(task, base, tmp_path / str(stage), zero_stage=stage) for stage in STAGES[task]}
    *first, last = runs.values()
    for other in first:
        np.testing.assert_allclose(last.of("loss"), other.of("loss"), rtol=1e-4)
    if task in ("dpo", "kto"):
        # 0 before training: the reference is the quantised base, not the one that it was made of.
        assert last.of("heldout_margin")[0] == 0.0 and abs(last.of("heldout_margin")[-1]) > 1e-3
    head = 64 * (task == "reward_model")
    assert last.of("trainable_parameters") == [8192 + head]
    plain = sum(p.numel() for p in load(base).parameters())
    assert last.of("parameters") == [plain + 8192 + 2 * head]  # the head, and the copy of it that PEFT trains
    auto, options = AutoModelForCausalLM, {}
    if task == "reward_model":
        auto, options = AutoModelForSequenceClassification, {"num_labels": 1, "pad_token_id": 0}
    for stage in runs:
        folder = tmp_path / str(stage)
        quantised = auto.from_pretrained(base, dtype=torch.float32, quantization_config=NF4, **options)
        adapted = PeftModel.from_pretrained(quantised, folder / "adapter").eval()
        merged = auto.from_pretrained(folder / "model", dtype=torch.float32)
        assert not hasattr(merged.config, "quantization_config")
        assert {p.dtype for p in merged.parameters()} == {torch.float32}
        np.testing.assert_allclose(scores(merged), scores(adapted), atol=1e-4)


def test_adalora_allots_ranks_on_them(base, tmp_path):
    adapter = {"kind": "adalora", "init_r": 4, "target_r": 2, "tfinal": 1}
    changes = {"adapter": adapter, "max_steps": 3}
    losses = [run("sft", base, tmp_path / str(stage), zero_stage=stage, **changes).of("loss") for stage in (2, 3)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    patterns = [adapter_settings(tmp_path / stage / "adapter")["rank_pattern"] for stage in ("2", "3")]
    assert patterns[0] == patterns[1] and sum(map(sum, patterns[0].values())) == 14 * 2
    quantised = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=NF4)
    adapted = PeftModel.from_pretrained(quantised, tmp_path / "3" / "adapter").eval()
    assert np.abs(scores(adapted) - scores(load(base))).max() > 1e-2
    np.testing.assert_allclose(scores(load(tmp_path / "3" / "model")), scores(adapted), atol=1e-4)


@pytest.mark.soak
def test_two_ranks_learn_as_one_does(base, tmp_path, ray_cluster):
    """With stage 3 packed weights are split over the ranks, too."""
    alone = run("sft", base, tmp_path / "alone").of("loss")
    jobs = []
    for stage in (2, 3):
        settings = recipe("sft", base, zero_stage=stage, ranks=2, per_device_train_batch_size=4)
        result = tmp_path / f"two-{stage}" / "model"
        result.parent.mkdir()
        jobs.append(prepare(settings, str(base), load_sources(settings.data), result))
    figures = Figures()
    run_remote(train_one_after_another, jobs, Launch("SFT", 2, Resources(), 1, Deadlines()), figures)
    for number, stage in enumerate((2, 3)):
        losses = [v["loss"] for step, v in figures if "loss" in v and number * 100 < step < (number + 1) * 100]
        np.testing.assert_allclose(losses, alone, rtol=1e-4)
        merged = scores(load(tmp_path / f"two-{stage}" / "model"))
        np.testing.assert_allclose(merged, scores(load(tmp_path / "alone" / "model")), atol=1e-4)


def test_the_adapter_computes_in_the_model_s_type(base, tmp_path, monkeypatch):
    """TRL makes bfloat16 of it."""
    seen, finish = [], trl_worker.adapted.finish

    def watching(trainer, *rest):
        before = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
        initial = finish(trainer, *rest)
        seen.append((before, {p.dtype for p in trainer.model.parameters() if p.requires_grad}))
        return initial

    monkeypatch.setattr(trl_worker.adapted, "finish", watching)
    run("sft", base, tmp_path / "run", max_steps=1)
    assert seen == [({torch.bfloat16}, {torch.float32})]


@pytest.mark.parametrize(
    ("optim", "paged", "stage"), [("adamw_torch", None, 2), ("adamw_8bit", False, 0), ("paged_adamw_8bit", True, 3)]
)
def test_the_optimizer_that_steps(optim, paged, stage, base, tmp_path, monkeypatch):
    """Its class, its settings and what it keeps of a gradient, read from what DeepSpeed steps."""
    found, make = [], trl_worker.reporter

    def watching(trainer, *rest):
        class Watch(TrainerCallback):
            def on_step_end(self, *_, **__):
                optimizer = trainer.deepspeed.optimizer
                found.append(getattr(optimizer, "optimizer", optimizer))

        trainer.add_callback(Watch())
        return make(trainer, *rest)

    monkeypatch.setattr(trl_worker, "reporter", watching)
    changes = {"optimizer": FAST | {"optim": optim}, "zero_stage": stage, "gradient_checkpointing": stage == 3}
    losses = run("sft", base, tmp_path / "run", adapter=LORA | {"r": 64}, **changes).of("loss")
    assert losses[-1] < losses[0]
    stepped = found[-1]
    kind = "torch.optim.adamw" if paged is None else "bitsandbytes.optim.adamw"
    assert type(stepped).__module__ == kind and type(stepped).__name__ == "AdamW"
    if paged is not None:
        assert (stepped.args.optim_bits, stepped.is_paged) == (8, paged)
        assert {s["state1"].dtype for s in stepped.state.values()} >= {torch.uint8}
