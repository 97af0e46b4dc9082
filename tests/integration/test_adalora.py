"""AdaLoRA in the offline tasks: the ranks that PEFT alone would allot, in every ZeRO stage and split over ranks."""

import numpy as np
import pytest
import torch
from adapter_stages import load, on_two_ranks, run, scores
from peft import PeftModel, get_peft_model
from transformers import TrainerCallback

from rlpipe.models.adapters import peft_config
from rlpipe.models.folders import adapter_settings
from rlpipe.models.merge_adapters import merge_adapter
from rlpipe.pipelines.offline import trl_worker
from rlpipe.recipe.adapter_ranks import AdaLoraAdapter

pytestmark = pytest.mark.integration

ADALORA = {"kind": "adalora", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2, "lora_alpha": 8}
STEPS, LAYERS = 7, 14
UNCLIPPED = {"learning_rate": 1e-2, "warmup_steps": 0, "lr_scheduler_type": "constant", "max_grad_norm": 1e9}
TRAINING = {"max_steps": STEPS, "optimizer": UNCLIPPED}


class Seen:
    """What a training was given and how its ranks moved."""

    def __init__(self, monkeypatch):
        self.batches, self.patterns, make = [], [], trl_worker.reporter

        def watching(trainer, *rest):
            trainer.add_callback(self.watch(trainer))
            return make(trainer, *rest)

        monkeypatch.setattr(trl_worker, "reporter", watching)

    def watch(self, trainer):
        compute, patterns = trainer.compute_loss, self.patterns
        self.initial = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if ".lora_" in n}

        def remembering(model, inputs, *rest, **options):
            if trainer.model.training:
                self.batches.append({key: tensor.clone() for key, tensor in inputs.items()})
            return compute(model, inputs, *rest, **options)

        trainer.compute_loss = remembering

        class Watch(TrainerCallback):
            def on_step_end(self, *_, **__):
                patterns.append(trainer.model.peft_config["default"].rank_pattern)

        return Watch()


def ranks(pattern):
    return sum(sum(kept) for kept in pattern.values())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = {}
    for stage in (0, 3):
        with pytest.MonkeyPatch.context() as patch:
            folder, seen = tmp_path_factory.mktemp(f"stage-{stage}"), Seen(patch)
            figures = run("sft", ADALORA, folder, zero_stage=stage, **TRAINING)
            found[stage] = (folder, seen, figures)
    return found


def peft_alone(folder, seen):
    """The loop of PEFT's documentation: losses without the pull towards orthogonality, and ranks."""
    spec = AdaLoraAdapter.model_validate(ADALORA)
    base = load(folder / "base")
    model = get_peft_model(base, peft_config(spec, "CAUSAL_LM", 0, "", STEPS))
    model.load_state_dict(seen.initial, strict=False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    losses, patterns = [], []
    for step, batch in enumerate(seen.batches, 1):
        losses.append(base(**batch).loss.item())
        model(**batch).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        patterns.append(model.peft_config["default"].rank_pattern)
    return losses, patterns


def test_ranks_fall_to_the_budget_as_peft_s_would(runs):
    folder, seen, _ = runs[0]
    losses, patterns = peft_alone(folder, seen)
    assert patterns[0] is None and LAYERS * 2 < ranks(patterns[2]) < LAYERS * 4
    assert ranks(patterns[-1]) == LAYERS * 2
    assert len({sum(kept) for kept in patterns[-1].values()}) > 1  # some layers keep more than others
    for stage in runs:
        assert runs[stage][1].patterns == patterns
        np.testing.assert_allclose(runs[stage][2].of("loss"), losses, rtol=1e-4)


def test_the_adapter_has_the_ranks_and_the_model_is_what_it_makes(runs):
    for folder, seen, _ in runs.values():
        adapted = PeftModel.from_pretrained(load(folder / "base"), folder / "adapter")
        sizes = {name: p.shape[0] for name, p in adapted.base_model.model.named_parameters() if ".lora_A." in name}
        kept = {name.replace("lora_E", "lora_A"): sum(kept) for name, kept in seen.patterns[-1].items()}
        assert sizes == kept
        np.testing.assert_allclose(scores(load(folder / "model")), scores(adapted), atol=1e-4)
        merge_adapter(folder / "base", folder / "adapter", folder / "merged")
        np.testing.assert_allclose(scores(load(folder / "merged")), scores(adapted), atol=1e-4)
        assert np.abs(scores(adapted) - scores(load(folder / "base"))).max() > 1e-2


@pytest.mark.soak
def test_two_ranks_allot_as_one_does(runs, ray_cluster):
    alone, _, figures = runs[0]
    expected = adapter_settings(alone / "adapter")["rank_pattern"]
    for folder, losses in on_two_ranks(ADALORA, alone, (2, 3), **TRAINING):
        assert adapter_settings(folder / "adapter")["rank_pattern"] == expected
        np.testing.assert_allclose(losses, figures.of("loss"), rtol=1e-4)
        np.testing.assert_allclose(scores(load(folder / "model")), scores(load(alone / "model")), atol=1e-4)
