"""Predicted numbers of trained parameters: by hand, and as counted in models that transformers and PEFT make."""

import json
from types import SimpleNamespace

import pytest
import torch
from pydantic import TypeAdapter
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlpipe.data.storage import Storage
from rlpipe.models import adapters
from rlpipe.observe import events
from rlpipe.observe.events import EventLog
from rlpipe.pipelines.offline.adapted import sizes
from rlpipe.pipelines.sizes import tell
from rlpipe.plan.adapter_size import trained_parameters
from rlpipe.plan.architecture import Unpredictable, architecture
from rlpipe.recipe.adapter import Adapter
from rlpipe.recipe.load import load

SHAPE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 100}
CONFIGS = {
    "qwen2": SHAPE | {"intermediate_size": 96, "num_key_value_heads": 2, "tie_word_embeddings": True},
    # The story model of 260,000 parameters: its heads together are wider than the residual stream.
    "llama": SHAPE
    | {"intermediate_size": 172, "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4}
    | {"head_dim": 32, "vocab_size": 512, "tie_word_embeddings": True},
    "llama with biases": SHAPE | {"intermediate_size": 96, "attention_bias": True, "mlp_bias": True},
    "qwen3": SHAPE | {"intermediate_size": 96, "num_key_value_heads": 1, "head_dim": 24, "tie_word_embeddings": False},
    "mistral": SHAPE | {"intermediate_size": 96, "num_key_value_heads": 2, "tie_word_embeddings": False},
}
ADAPTERS = {
    "lora": {"kind": "lora", "r": 4},
    "rslora": {"kind": "lora", "r": 4, "use_rslora": True},
    "dora": {"kind": "lora", "r": 4, "use_dora": True},
    "pissa": {"kind": "lora", "r": 4, "init_lora_weights": "pissa"},
    "lora+": {"kind": "lora", "r": 4, "loraplus_lr_ratio": 16.0},
    "lora of some": {"kind": "lora", "r": 4, "target_modules": ["q_proj", "layers.1.mlp.down_proj"]},
    "lora_fa": {"kind": "lora_fa", "r": 4},
    "delta_lora": {"kind": "delta_lora", "r": 4},
    "vera": {"kind": "vera", "r": 8},
    "ia3": {"kind": "ia3"},
    "ia3 of others": {"kind": "ia3", "target_modules": ["q_proj", "o_proj"], "feedforward_modules": ["o_proj"]},
    "pfeiffer": {"kind": "bottleneck", "reduction_factor": 16},
    "houlsby": {"kind": "bottleneck", "reduction_factor": 3, "placement": "houlsby"},
    "prompt": {"kind": "prompt_tuning", "num_virtual_tokens": 7},
    "prefix": {"kind": "prefix_tuning", "num_virtual_tokens": 7},
    "projected": {"kind": "prefix_tuning", "num_virtual_tokens": 7, "prefix_projection": True},
    "narrow": {
        "kind": "prefix_tuning", "num_virtual_tokens": 7, "prefix_projection": True, "encoder_hidden_size": 12,
    },
}  # fmt: skip

BIASED = {
    "their own": {"kind": "lora_fa", "r": 4, "bias": "lora_only", "target_modules": ["k_proj", "down_proj"]},
    "all": {"kind": "lora", "r": 4, "bias": "all", "target_modules": ["k_proj", "down_proj"]},
}


def config(name, **more):
    return AutoConfig.for_model(name.split()[0], **CONFIGS[name], **more)


def model(name):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(name))


def spec(name):
    return TypeAdapter(Adapter).validate_python((ADAPTERS | BIASED)[name])


def predicted(name, adapter, **options):
    return trained_parameters(architecture(config(name).to_dict()), adapter, **options)


def counted(made):
    return sizes(made)["trainable_parameters"]


def test_by_hand():
    """Of the story model: 5 layers, width 64, keys of 4 * 32 = 128, queries of 8 * 32 = 256."""
    low_rank = 5 * 4 * ((64 + 256) * 2 + (64 + 128) * 2 + (64 + 172) * 3)
    assert predicted("llama", spec("lora")) == low_rank == 34640
    ranks = TypeAdapter(Adapter).validate_python({"kind": "adalora", "init_r": 4, "target_r": 2})
    assert predicted("llama", ranks) == low_rank + 5 * 7 * 4  # a singular value for each rank of seven layers
    assert predicted("llama", spec("prompt")) == 7 * 64
    assert predicted("llama", spec("pfeiffer")) == 5 * (64 * 4 + 4 + 4 * 64 + 64)
    assert predicted("llama", spec("houlsby")) == 5 * 2 * (64 * 21 + 21 + 21 * 64 + 64)
    assert predicted("llama", spec("prefix")) == 7 * 2 * 5 * 128
    full = 512 * 64 + 5 * (2 * 64 * 256 + 2 * 64 * 128 + 3 * 64 * 172 + 2 * 64) + 64
    assert predicted("llama", None) == full == 444352


@pytest.mark.parametrize("name", CONFIGS)
def test_full_fine_tuning_and_biases(name):
    made = model(name)
    assert predicted(name, None) == counted(made)
    biases = TypeAdapter(Adapter).validate_python({"kind": "bitfit"})
    if predicted(name, biases):
        adapters.train_biases_alone(made)
        assert predicted(name, biases) == counted(made)
    else:
        assert not any(key.endswith("bias") for key, _ in made.named_parameters())
    scoring = AutoModelForSequenceClassification.from_config(config(name, num_labels=1))
    assert predicted(name, None, scores=True) == counted(scoring)


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("name", ["qwen2", "llama", "qwen3"])
def test_every_kind(name, kind):
    assert predicted(name, spec(kind)) == counted(adapters.adapt(model(name), spec(kind), seed=0))


@pytest.mark.parametrize("which", BIASED)
@pytest.mark.parametrize("name", ["qwen2", "llama with biases"])
def test_biases_that_learn_beside_matrices(name, which):
    assert predicted(name, spec(which)) == counted(adapters.adapt(model(name), spec(which), seed=0))


class TestTold:
    @pytest.fixture
    def stage(self, tmp_path):
        log = EventLog(Storage(tmp_path / "run"))
        recipe = load("arithmetic/sft", ["adapter.kind=lora", "adapter.r=4"])
        yield SimpleNamespace(recipe=recipe, model_path=str(tmp_path), events=log, directory=tmp_path)
        log.close()

    def told(self, stage, described, trained):
        (stage.directory / "config.json").write_text(json.dumps(described.to_dict()))
        tell(stage, trained, 1_000_000)
        found, _ = events.read(Storage(stage.directory / "run"))
        [note] = [event["message"] for event in found if event["kind"] == "note"]
        [metrics] = [(event["step"], event["metrics"]) for event in found if event["kind"] == "metrics"]
        return note, metrics

    def test_as_predicted(self, stage, caplog):
        assert self.told(stage, config("llama"), 34640) == (
            "trainable: 34,640 of 1,000,000 (3.5 %), as predicted",
            (0, {"trainable_parameters": 34640, "parameters": 1e6, "predicted_trainable_parameters": 34640}),
        )
        assert caplog.messages == []

    def test_a_difference_is_a_warning(self, stage, caplog):
        assert self.told(stage, config("llama"), 34641)[0] == "trainable: 34,641 of 1,000,000 (3.5 %)"
        assert caplog.messages == ["34,640 trained parameters were predicted, and 34,641 are trained"]

    def test_of_another_architecture_nothing_is_predicted(self, stage):
        note, (_, metrics) = self.told(stage, AutoConfig.for_model("gpt2"), 7)
        assert note.endswith(
            "; no prediction: the shapes of gpt2 models are not known, only those of llama, mistral, qwen2, qwen3"
        )
        assert "predicted_trainable_parameters" not in metrics


def test_no_guesses():
    with pytest.raises(Unpredictable, match="shapes of mamba models are not known, only those of llama, "):
        architecture({"model_type": "mamba", "hidden_size": 8})
    for name in ("nowhere", "lm_head", "embed_tokens"):
        named = TypeAdapter(Adapter).validate_python({"kind": "lora", "target_modules": ["q_proj", name]})
        with pytest.raises(Unpredictable, match=f"{name} is none of the decoder's linear layers"):
            predicted("qwen2", named)
