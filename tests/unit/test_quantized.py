"""4-bit weights: what they are, what they take, and that plain weights come out of them."""

import json

import bitsandbytes
import pytest
import tiny_models
import torch
from pydantic import TypeAdapter, ValidationError
from test_adapter_kinds import KINDS, LAYERS, TRAINED, answers, difference, learn, with_adapter

from rlpipe.models.load import load_causal_lm
from rlpipe.models.quantized import is_packed, unpacked
from rlpipe.recipe.adapter import Adapter
from rlpipe.recipe.model import PretrainedModel
from rlpipe.recipe.qlora import check_quantized
from rlpipe.recipe.quantization import Quantization
from rlpipe.training import adapter_export
from rlpipe.training.export import save_weights
from rlpipe.training.sharding import size

LINEAR = LAYERS * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3)
NF4 = [
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]  # fmt: skip
"""Dettmers et al. 2023, appendix E."""
ON_4_BITS = [name for name in KINDS if name not in ("pissa", "delta_lora")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


def load(folder, dtype=torch.float32, **settings):
    spec = PretrainedModel(path=str(folder), quantization=Quantization(**settings))
    return load_causal_lm(spec, str(folder), dtype)


def packed(model):
    return {name: p for name, p in model.named_parameters() if is_packed(p)}


def adapted(folder, name):
    return with_adapter(load(folder), name)


def test_each_weight_is_one_of_sixteen_values_times_its_block_s_largest(folder):
    plain = tiny_models.load(folder)
    found = packed(load(folder, bnb_4bit_use_double_quant=False))
    assert sum(size(p).numel() for p in found.values()) == LINEAR
    for name, parameter in found.items():
        blocks = plain.get_parameter(name).detach().reshape(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True)
        nearest = (blocks / scale)[..., None].sub(torch.tensor(NF4)).abs().min(-1)
        values = unpacked(parameter).reshape(-1, 64) / scale
        torch.testing.assert_close(values, torch.tensor(NF4)[nearest.indices], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("double", "bits"), [(False, 4.5), (True, 4.127)])
def test_what_a_weight_takes(folder, double, bits):
    """With double quantisation 4 + 8/64 + 32/(64 * 256) bits, and small tables (appendix of the paper)."""
    plain = tiny_models.load(folder)
    for name, parameter in packed(load(folder, bnb_4bit_use_double_quant=double)).items():
        state, weights = parameter.quant_state, plain.get_parameter(name).numel()
        scales = [state.absmax, *([state.state2.absmax] if double else [])]
        taken = parameter.nbytes + sum(s.nbytes for s in scales)
        # one scale of 256 blocks is rounded up to a whole one in so small a layer
        assert taken * 8 / weights == pytest.approx(bits, abs=32 / weights if double else 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_are_counted_as_if_they_were_not_packed(folder, dtype):
    counted = sum(size(p).numel() for p in load(folder, dtype).parameters())
    assert counted == sum(p.numel() for p in tiny_models.load(folder).parameters())


@pytest.mark.parametrize("name", ON_4_BITS)
def test_each_kind_learns_on_them_and_merges_into_what_it_learnt_on(folder, name, tmp_path):
    model = adapted(folder, name)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == LAYERS * TRAINED[name]
    before, frozen = answers(model), {n: p.clone() for n, p in packed(model).items()}
    assert difference(before, answers(tiny_models.load(folder))) > 1e-2
    learn(model)
    after = answers(model)
    assert difference(after, before) > 1e-2
    base = model.get_base_model()
    save_weights(base, adapter_export.merged_parameters(model), str(folder), tmp_path / "model", writer=True)
    assert difference(answers(tiny_models.load(tmp_path / "model")), after) < 1e-4
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())
    assert base.config.quantization_config is not None
    assert difference(answers(model), after) == 0.0
    assert all(torch.equal(p, frozen[n]) for n, p in packed(model).items()) and len(frozen) == 7 * LAYERS


def test_the_folder_loads_onto_4_bit_weights_with_peft(folder, tmp_path):
    from peft import AutoPeftModelForCausalLM
    from transformers import BitsAndBytesConfig

    model = adapted(folder, "lora")
    learn(model)
    adapter_export.save_adapter(model, tmp_path / "adapter", writer=True)
    theirs = AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "adapter",
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    assert difference(answers(theirs.eval()), answers(model)) < 1e-5


def test_evaluating_leaves_gradients_be_where_the_cpu_has_bfloat16(folder, monkeypatch):
    """bitsandbytes would repack the weights of a layer in evaluation mode there, and stop gradients at it."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    model = load(folder).eval()
    kept = {name: p.clone() for name, p in packed(model).items()}
    with torch.no_grad():
        answers(model)
    assert all(torch.equal(p, kept[name]) for name, p in packed(model).items())
    inputs = torch.randn(1, 9, 64, requires_grad=True)
    model(inputs_embeds=inputs).logits.sum().backward()
    assert inputs.grad.abs().sum() > 0


def check(adapter):
    adapter = None if adapter is None else TypeAdapter(Adapter).validate_python(adapter)
    check_quantized(Quantization(), adapter)


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (None, "give an adapter"),
        ({"kind": "bitfit"}, "adapter.kind=bitfit cannot .* take one of lora, lora_fa, adalora, ia3, vera"),
        ({"kind": "bottleneck"}, "adapter.kind=bottleneck cannot .* take one of lora, "),
        (KINDS["delta_lora"], "adapter.kind=delta_lora cannot .* take one of lora, "),
        (KINDS["pissa"], "init_lora_weights=pissa .* leave init_lora_weights out"),
    ],
)
def test_what_cannot_learn_on_them_is_refused(adapter, said):
    with pytest.raises(ValueError, match=said):
        check(adapter)


@pytest.mark.parametrize("name", ON_4_BITS)
def test_the_others_are_not(name):
    check(KINDS[name])


def test_a_model_from_scratch_has_no_such_key():
    from rlpipe.recipe.model import ScratchModel

    with pytest.raises(ValidationError, match="quantization"):
        ScratchModel(scratch="qwen2", quantization={})


def test_a_critic_of_4_bits_needs_an_adapter():
    from rlpipe.recipe.critic import Critic

    model = {"path": "x", "quantization": {"load_in_4bit": True}}
    assert Critic(model=model, adapter={"kind": "ia3"}).model.quantization == Quantization()
    with pytest.raises(ValidationError, match=r"cannot be trained themselves; give an adapter"):
        Critic(model=model)
