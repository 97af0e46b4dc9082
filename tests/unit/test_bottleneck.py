"""Bottleneck layers: what they compute, what is learned, what is left when they are off, and who answers with them."""

import numpy as np
import pytest
import tiny_models
import torch
from peft import PeftModel
from pydantic import TypeAdapter
from test_adapter_kinds import PROBES, answers, difference, learn, learned_and_saved
from tiny_models import END, request, teacher_forced
from transformers import GPT2Config, GPT2LMHeadModel

from rlpipe.models import adapters
from rlpipe.models.bottleneck import BottleneckConfig, BottleneckLayer
from rlpipe.models.load import ModelError
from rlpipe.models.merge_adapters import merge_adapter
from rlpipe.recipe.adapter import Adapter
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.transformers_engine import TransformersEngine

HIDDEN, LAYERS, REDUCTION = 64, 2, 8
KINDS = {
    "pfeiffer": {"kind": "bottleneck", "reduction_factor": REDUCTION},
    "houlsby": {"kind": "bottleneck", "reduction_factor": REDUCTION, "placement": "houlsby", "non_linearity": "gelu"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


def adapted(folder, name):
    return adapters.adapt(tiny_models.load(folder), TypeAdapter(Adapter).validate_python(KINDS[name]), seed=0)


@pytest.fixture(scope="module")
def learned(folder, tmp_path_factory):
    """Of each placement the model that has learned, and its adapter as it was saved."""
    return learned_and_saved({name: adapted(folder, name) for name in KINDS}, tmp_path_factory)


def test_what_a_layer_computes():
    """y + W_up relu(W_down y + b_down) + b_up behind a layer that leaves its input as it is."""
    base = torch.nn.Linear(2, 2, bias=False)
    layer = BottleneckLayer(base)
    layer.add("default", BottleneckConfig(reduction_factor=2))
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    with torch.no_grad():
        base.weight.copy_(torch.eye(2))
        down.weight.copy_(torch.tensor([[1.0, -1.0]]))
        down.bias.fill_(0.5)
        torch.testing.assert_close(layer(torch.tensor([3.0, 1.0])), torch.tensor([3.0, 1.0]))  # up begins as 0
        up.weight.copy_(torch.tensor([[2.0], [3.0]]))
        up.bias.copy_(torch.tensor([0.1, 0.2]))
        torch.testing.assert_close(layer(torch.tensor([3.0, 1.0])), torch.tensor([8.1, 8.7]))  # relu(2.5)
        torch.testing.assert_close(layer(torch.tensor([1.0, 3.0])), torch.tensor([1.1, 3.2]))  # relu(-1.5)


@pytest.mark.parametrize(("name", "behind"), [("pfeiffer", {"down_proj"}), ("houlsby", {"o_proj", "down_proj"})])
def test_where_they_stand(folder, name, behind):
    found = [key for key, module in adapted(folder, name).named_modules() if isinstance(module, BottleneckLayer)]
    assert {key.rpartition(".")[2] for key in found} == behind and len(found) == LAYERS * len(behind)


@pytest.mark.parametrize("name", KINDS)
def test_it_changes_nothing_at_first_and_then_nothing_else_moves(folder, name):
    base, model = answers(tiny_models.load(folder)), adapted(folder, name)
    assert difference(answers(model), base) < 1e-6
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    learn(model)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) == ("bottleneck_" not in key)


@pytest.mark.parametrize("name", KINDS)
def test_switched_off_it_is_the_base_and_its_folder_loads_with_peft(folder, learned, name):
    (model, directory), base = learned[name], answers(tiny_models.load(folder))
    before = answers(model)
    assert difference(before, base) > 1e-2
    with adapters.switched_off(model):
        assert difference(answers(model), base) < 1e-6
    loaded = PeftModel.from_pretrained(tiny_models.load(folder), directory).eval()
    assert difference(answers(loaded), before) < 1e-6


def test_the_transformers_engine_answers_with_it(folder, learned):
    model, directory = learned["houlsby"]
    engine = TransformersEngine(EngineSpec("transformers", str(folder), "float32", (END,), 0, adapter=str(directory)))
    for answer, expected in zip(engine.probe(PROBES), answers(model), strict=True):
        np.testing.assert_allclose(answer, expected, atol=2e-5)
    engine.submit([request(0)])
    while engine.health().outstanding:
        for t in engine.step():
            expected = teacher_forced(model, t.prompt_tokens, t.response_tokens)
            np.testing.assert_allclose(t.behaviour_logprobs, expected, atol=2e-5)


def test_it_does_not_merge(folder, learned, tmp_path):
    with pytest.raises(ModelError, match=r"\(BOTTLENECK\) adds layers and changes no weights.*rlpipe chat"):
        merge_adapter(folder, learned["pfeiffer"][1], tmp_path / "out")


def test_of_another_family_it_says_that_its_layers_are_not_there():
    spec = TypeAdapter(Adapter).validate_python(KINDS["houlsby"])
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8))
    with pytest.raises(ModelError, match=r"adapter.placement: Target modules .* not found in the base model"):
        adapters.adapt(model, spec, seed=0)
