"""What makes each kind of adapter itself; and that what is merged answers as the adapter does."""

import numpy as np
import pytest
import tiny_models
import torch
from peft import PeftModel, get_peft_model
from pydantic import TypeAdapter
from tiny_models import request, teacher_forced

from rlpipe.models import adapters
from rlpipe.models.load import ModelError
from rlpipe.recipe.adapter import Adapter
from rlpipe.training import adapter_export, rank_allocation
from rlpipe.training.base_update import BaseUpdate
from rlpipe.weights.probes import choose_probes

PROBES = choose_probes([request(0).prompt_tokens], tiny_models.VOCABULARY, longest=64)
HIDDEN, KEY_VALUE, BETWEEN, LAYERS, R = 64, 32, 128, 2, 4
INPUTS_OUTPUTS = [(HIDDEN, HIDDEN)] * 2 + [(HIDDEN, KEY_VALUE)] * 2 + [(HIDDEN, BETWEEN)] * 2 + [(BETWEEN, HIDDEN)]
"""Of q o, k v, gate up, down."""
KINDS = {
    "lora": {"kind": "lora", "r": R},
    "rslora": {"kind": "lora", "r": R, "use_rslora": True},
    "dora": {"kind": "lora", "r": R, "use_dora": True},
    "pissa": {"kind": "lora", "r": R, "init_lora_weights": "pissa"},
    "lora_bias": {"kind": "lora", "r": R, "bias": "lora_only", "target_modules": ["k_proj", "up_proj"]},
    "all_biases": {"kind": "lora", "r": R, "bias": "all", "target_modules": ["k_proj"]},
    "lora_fa": {"kind": "lora_fa", "r": R},
    "delta_lora": {"kind": "delta_lora", "r": R},
    "adalora": {"kind": "adalora", "init_r": R, "target_r": 2, "lora_alpha": 1000},
    "vera": {"kind": "vera", "r": R},
    "ia3": {"kind": "ia3"},
}
LORA = sum(R * (a + b) for a, b in INPUTS_OUTPUTS)
TRAINED = {
    "lora": LORA,
    "rslora": LORA,
    "dora": LORA + sum(b for _, b in INPUTS_OUTPUTS),
    "pissa": LORA,
    "lora_bias": R * (HIDDEN + KEY_VALUE) + R * (HIDDEN + BETWEEN) + KEY_VALUE,
    "all_biases": R * (HIDDEN + KEY_VALUE) + HIDDEN + 2 * KEY_VALUE,
    "delta_lora": LORA,
    "lora_fa": sum(R * b for _, b in INPUTS_OUTPUTS),
    "adalora": sum(R * (a + b + 1) for a, b in INPUTS_OUTPUTS),
    "vera": sum(R + b for _, b in INPUTS_OUTPUTS),
    "ia3": 2 * KEY_VALUE + BETWEEN,
}
"""Parameters of one layer, by the formulas of docs/adapters.md."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


def adapted(folder, name):
    return with_adapter(tiny_models.load(folder), name)


def with_adapter(model, name):
    spec = TypeAdapter(Adapter).validate_python(KINDS[name])
    if name == "adalora":  # which RL, where `adapt` makes adapters, does not have
        torch.manual_seed(0)
        return get_peft_model(model, adapters.peft_config(spec, "CAUSAL_LM", 0, "", steps=10))
    return adapters.adapt(model, spec, seed=0)


def learn(model, steps=3):
    """Move what is trained, as training would."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    tokens = torch.from_numpy(PROBES[0].astype(np.int64))[None]
    for _ in range(steps):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def learned_and_saved(models, factory):
    """Of each name the model, which has learned, and the folder of its adapter."""
    made = {}
    for name, model in models.items():
        directory = factory.mktemp(name) / "adapter"
        learn(model)
        adapter_export.save_adapter(model, directory, writer=True)
        made[name] = (model.eval(), directory)
    return made


def answers(model):
    return [teacher_forced(model, tokens[:1], tokens[1:]) for tokens in PROBES]


def difference(one, other):
    return max(np.abs(a - b).max() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_the_number_of_trained_parameters_is_the_formula_s(folder, name):
    trained = sum(p.numel() for p in adapted(folder, name).parameters() if p.requires_grad)
    assert trained == LAYERS * TRAINED[name]


@pytest.mark.parametrize("name", KINDS)
def test_it_changes_nothing_at_first_then_everything_and_merges(folder, name, tmp_path):
    base, model = answers(tiny_models.load(folder)), adapted(folder, name)
    assert difference(answers(model), base) < 1e-4
    departure = adapter_export.Departure(adapter_export.adapter_state(model)) if name == "pissa" else None
    learn(model)
    learned = answers(model)
    assert difference(learned, base) > 1e-2
    merged = tiny_models.load(folder)
    weights = {key: tensor.clone() for key, tensor in adapter_export.merged_parameters(model)}
    assert weights.keys() == dict(merged.named_parameters()).keys()
    merged.load_state_dict(weights, strict=False)
    assert difference(answers(merged), learned) < 1e-4
    np.testing.assert_array_equal(answers(model)[0], learned[0])  # merging has left no trace
    if departure is None:
        adapter_export.save_adapter(model, tmp_path / "adapter", writer=True)
    else:
        adapter_export.save_changed(model, departure, tmp_path / "adapter", writer=True)
    if name not in ("pissa", "lora_bias", "all_biases"):
        with adapters.switched_off(model):
            assert difference(answers(model), base) < 1e-5
    loaded = PeftModel.from_pretrained(tiny_models.load(folder), tmp_path / "adapter")
    assert difference(answers(loaded), learned) < 1e-4


def test_dora_on_rows_without_a_direction_is_refused(folder):
    """As in a model whose heads were padded with zeros."""
    model = tiny_models.load(folder)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[3:5] = 0.0
    dora = TypeAdapter(Adapter).validate_python(KINDS["dora"])
    with pytest.raises(ModelError, match=r"2 of 64 rows of model\.layers\.1\.self_attn\.q_proj are all 0"):
        adapters.adapt(model, dora, seed=0)


def test_dora_learns_lengths_apart_from_directions(folder):
    model = adapted(folder, "dora")
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    length = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(length.data, layer.base_layer.weight.norm(dim=1), rtol=1e-5, atol=0)
    with torch.no_grad():
        length.mul_(2.0)
    merged = dict(adapter_export.merged_parameters(model))["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(merged, 2 * layer.base_layer.weight.data, rtol=1e-5, atol=1e-6)


def test_pissa_takes_the_largest_singular_values_out(folder):
    weight = tiny_models.load(folder).model.layers[0].self_attn.q_proj.weight
    rest = adapted(folder, "pissa").get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    torch.testing.assert_close(
        torch.linalg.svdvals(rest.data)[: HIDDEN - R], torch.linalg.svdvals(weight.data)[R:], rtol=1e-3, atol=1e-4
    )


def test_lora_fa_keeps_a_as_it_was_drawn(folder):
    model = adapted(folder, "lora_fa")
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
    learn(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert torch.equal(parameter, before[name]) == (".lora_A." in name)


def test_adalora_s_matrices_are_pulled_towards_orthogonality_as_in_peft(folder):
    model = adapted(folder, "adalora")
    tokens = torch.from_numpy(PROBES[0].astype(np.int64))[None]
    with torch.no_grad():
        pull = model(input_ids=tokens, labels=tokens).loss - model.get_base_model()(tokens, labels=tokens).loss
    matrices = [(n, p) for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n]
    assert pull.item() == pytest.approx(0.5 * rank_allocation.orthogonality(matrices).item(), rel=1e-5)
    orthonormal = [("x.lora_A.default", torch.eye(2, 5)), ("x.lora_B.default", torch.eye(5, 2) * 2)]
    assert rank_allocation.orthogonality(orthonormal).item() == pytest.approx((0 + 3 * 2**0.5) / 2)


def test_delta_lora_moves_the_weights_by_what_each_step_changes(folder, tmp_path):
    """With A all ones and but one row in B that is not 0, that row of W moves, by ratio * 32 / r * r * change."""
    model, base = adapted(folder, "delta_lora"), tiny_models.load(folder)
    before = base.model.layers[0].self_attn.q_proj.weight.data
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    layer.lora_A["default"].weight.data.fill_(1.0)
    update = BaseUpdate(model, ratio=0.5, start_step=1)
    for value, moved in [(0.01, 0.0), (0.03, 0.32), (0.02, 0.16)]:  # B in each step, and W then
        update.before_step()
        layer.lora_B["default"].weight.data[0] = value
        update.after_step()
        expected = before.clone()
        expected[0] += moved
        torch.testing.assert_close(layer.base_layer.weight.data, expected)
    merged = dict(adapter_export.merged_parameters(model))["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(merged[0], before[0] + 0.16 + 0.64)
    learned = answers(model)
    adapter_export.save_changed(model, update.departure(), tmp_path / "adapter", writer=True)
    assert difference(answers(PeftModel.from_pretrained(base, tmp_path / "adapter")), learned) < 1e-4


def test_delta_lora_wants_weights_that_take_small_changes(folder):
    spec = TypeAdapter(Adapter).validate_python(KINDS["delta_lora"])
    with pytest.raises(ModelError, match=r"torch.bfloat16 here and would round them away; set model.dtype=float32"):
        BaseUpdate(adapters.adapt(tiny_models.load(folder).bfloat16(), spec, seed=0), 0.5, 0)


def test_trained_biases_want_biases(folder):
    spec = TypeAdapter(Adapter).validate_python({"kind": "lora", "bias": "lora_only", "target_modules": ["o_proj"]})
    with pytest.raises(ModelError, match=r"adapter.bias=lora_only: there are no biases to train; leave it out"):
        adapters.adapt(tiny_models.load(folder), spec, seed=0)


def test_vera_s_matrices_are_the_same_in_all_layers_and_stay(folder):
    model = adapted(folder, "vera")
    layers = model.get_base_model().model.layers
    matrices = [layer.self_attn.q_proj.vera_A["default"] for layer in layers]
    assert matrices[0].data_ptr() == matrices[1].data_ptr()
    before = matrices[0].clone()
    learn(model)
    assert torch.equal(matrices[0], before)


def test_ia3_scales_outputs_of_attention_and_inputs_of_the_feed_forward_layer(folder):
    model = adapted(folder, "ia3")
    layer = model.get_base_model().model.layers[0]
    with torch.no_grad():
        layer.self_attn.v_proj.ia3_l["default"][3] = 2.0
        layer.mlp.down_proj.ia3_l["default"][0, 5] = 3.0
    merged = dict(adapter_export.merged_parameters(model))
    base = dict(tiny_models.load(folder).named_parameters())
    scaled = {
        "self_attn.v_proj.weight": ((3,), 2.0),
        "self_attn.v_proj.bias": ((3,), 2.0),
        "mlp.down_proj.weight": ((slice(None), 5), 3.0),
    }
    for name, (where, factor) in scaled.items():
        expected = base[f"model.layers.0.{name}"].data.clone()
        expected[where] *= factor
        torch.testing.assert_close(merged[f"model.layers.0.{name}"], expected)


def test_bitfit_trains_biases_that_exist_and_they_move(folder):
    model = tiny_models.load(folder)
    adapters.train_biases_alone(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == LAYERS * (HIDDEN + 2 * KEY_VALUE)
    learn(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not name.endswith(".bias"))


def test_bitfit_wants_biases():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has no biases to train; take adapter"):
        adapters.train_biases_alone(LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)))
