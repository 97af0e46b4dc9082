"""Adapters on a model, and through the reference engine."""

import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import END, adapter_payload, request, teacher_forced

from rlpipe.models import adapters
from rlpipe.models.load import ModelError
from rlpipe.recipe.adapter import LoraAdapter
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.records import NotCurrent
from rlpipe.rollout.transformers_engine import TransformersEngine
from rlpipe.weights.packing import pack
from rlpipe.weights.payload import WeightsRejected
from rlpipe.weights.probes import choose_probes

PROBES = choose_probes([request(0).prompt_tokens], tiny_models.VOCABULARY, longest=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def adapted(folder):
    return adapters.adapt(tiny_models.load(folder), LoraAdapter(kind="lora", r=4, lora_alpha=16), seed=0)


def answers(model):
    return [teacher_forced(model, tokens[:1], tokens[1:]) for tokens in PROBES]


def trainable(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_only_the_adapter_is_trained_and_its_size_is_the_formula_s(adapted):
    hidden, key_value, between, layers, r = 64, 32, 128, 2, 4
    widths = [(hidden, hidden)] * 2 + [(hidden, key_value)] * 2 + [(hidden, between)] * 3  # q o, k v, gate up down
    assert trainable(adapted) == layers * sum(r * (a + b) for a, b in widths) == 8192
    assert all("lora_" in name for name, p in adapted.named_parameters() if p.requires_grad)


def test_named_modules_alone_get_one(folder):
    adapted = adapters.adapt(tiny_models.load(folder), LoraAdapter(kind="lora", r=4, target_modules=["q_proj"]), 0)
    assert trainable(adapted) == 2 * 4 * (64 + 64)
    with pytest.raises(ModelError, match=r"adapter\.target_modules: .*nowhere"):
        adapters.adapt(tiny_models.load(folder), LoraAdapter(kind="lora", target_modules=["nowhere"]), 0)


def test_the_seed_alone_decides_it(folder):
    torch.manual_seed(5)
    spec = LoraAdapter(kind="lora", r=4)
    first, again, other = (adapters.adapt(tiny_models.load(folder), spec, seed) for seed in (1, 1, 2))
    weights = [dict(m.named_parameters())["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"]
               for m in (first, again, other)]  # fmt: skip
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.initial_seed() == 5


@pytest.mark.parametrize(("rslora", "scale"), [(False, 16 / 4), (True, 16 / 2)])
def test_the_scale(folder, rslora, scale):
    """W + scale * B A, of one layer, by hand."""
    spec = LoraAdapter(kind="lora", r=4, lora_alpha=16, use_rslora=rslora, target_modules=["q_proj"])
    adapted = adapters.adapt(tiny_models.load(folder), spec, 0)
    layer = adapted.get_base_model().model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b)
    x = torch.randn(3, 64)
    expected = layer.base_layer(x) + scale * (x @ a.T) @ b.T
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_switched_off_it_is_the_base_and_keeps_its_gradients(adapted, folder, tmp_path):
    adapter_payload(adapted, 1, tmp_path)
    before = answers(adapted)
    required = {name for name, p in adapted.named_parameters() if p.requires_grad}
    with adapters.switched_off(adapted):
        base = answers(adapted)
        assert {name for name, p in adapted.named_parameters() if p.requires_grad} == required
    for ours, theirs in zip(base, answers(tiny_models.load(folder)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.abs(before[0] - base[0]).max() > 0.1
    np.testing.assert_array_equal(answers(adapted)[0], before[0])


def test_the_folder_loads_with_peft(adapted, folder, tmp_path):
    from peft import PeftModel, get_peft_model_state_dict

    adapter_payload(adapted, 1, tmp_path / "unused")
    adapters.write(get_peft_model_state_dict(adapted), adapters.config_of(adapted), tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_models.load(folder), tmp_path / "adapter")
    for ours, theirs in zip(answers(loaded), answers(adapted), strict=True):
        np.testing.assert_array_equal(ours, theirs)


class TestTransformersEngine:
    @pytest.fixture
    def engine(self, folder):
        return TransformersEngine(EngineSpec("transformers", str(folder), "float32", (END,), 0, lora_rank=4))

    def test_it_serves_nothing_before_its_first_adapter(self, engine, folder):
        with pytest.raises(NotCurrent):
            engine.submit([request(0)])
        with pytest.raises(WeightsRejected, match="start it without lora_rank"):
            engine.publish(1, pack(tiny_models.load(folder).named_parameters()))

    def test_every_adapter_arrives_also_in_running_requests(self, engine, adapted, tmp_path):
        for version in (1, 2, 3):
            sent = adapter_payload(adapted, version, tmp_path)
            assert engine.publish(version, sent).digest == sent.digest
            if version == 1:
                engine.submit([request(i, prompt_length=20) for i in range(3)])
            engine.step()
            for answer, expected in zip(engine.probe(PROBES), answers(adapted), strict=True):
                np.testing.assert_allclose(answer, expected, atol=2e-5)
        while engine.health().outstanding:
            for t in engine.step():
                assert t.versions[-1].version == 3
                first = t.versions[-1].first_token
                expected = teacher_forced(adapted, t.prompt_tokens, t.response_tokens)
                np.testing.assert_allclose(t.behaviour_logprobs[first:], expected[first:], atol=2e-5)

    def test_many_versions_leave_nothing_behind(self, engine, adapted, tmp_path):
        first = adapter_payload(adapted, 1, tmp_path)
        engine.publish(1, first)
        before = engine.probe(PROBES)
        for version in range(2, 8):
            engine.publish(version, adapter_payload(adapted, version, tmp_path))
        assert np.abs(engine.probe(PROBES)[0] - before[0]).max() > 0.1
        engine.publish(8, first)
        for again, then in zip(engine.probe(PROBES), before, strict=True):
            np.testing.assert_array_equal(again, then)

    def test_an_adapter_of_another_rank_takes_the_place(self, engine, adapted, folder, tmp_path):
        engine.publish(1, adapter_payload(adapted, 1, tmp_path / "first"))
        other = adapters.adapt(tiny_models.load(folder), LoraAdapter(kind="lora", r=2), 0)
        engine.publish(2, adapter_payload(other, 2, tmp_path / "second"))
        for answer, expected in zip(engine.probe(PROBES), answers(other), strict=True):
            np.testing.assert_allclose(answer, expected, atol=2e-5)
