"""The embedded model: its size, its ties, its tokenizer, and that it loads as any Hugging Face folder does."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlpipe.models.load import (
    ModelError,
    context_length,
    load_causal_lm,
    load_tokenizer,
    materialise,
    naming_the_line,
    resolve_dtype,
)
from rlpipe.models.scratch import build, build_model, build_tokenizer, parameter_count
from rlpipe.recipe.model import PretrainedModel, ScratchModel

SMALL = {"scratch": "qwen2", "hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 128}


def scratch(**changes):
    return ScratchModel(**(SMALL | changes))


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_default_has_two_to_three_million_parameters():
    spec = ScratchModel(scratch="qwen2")
    assert 2_000_000 < parameter_count(spec, vocab_size=262) < 3_000_000
    assert spec.hidden_size // spec.heads in (32, 64)  # what vLLM on CPU takes


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_count(tied):
    spec = scratch(tie_word_embeddings=tied)
    model = build_model(spec, 0, 262, 0, 1)
    # embeddings; per layer q and o 2*64*64, k and v 2*64*32, biases 64+2*32, feed-forward 3*64*128, norms 2*64; norm
    by_hand = 262 * 64 * (1 if tied else 2) + 2 * (8192 + 4096 + 128 + 24576 + 128) + 64
    assert size(model) == parameter_count(spec, 262) == by_hand
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = build_model(scratch(), 0, 262, 0, 1).state_dict()
    torch.manual_seed(2)
    again, other = (build_model(scratch(), seed, 262, 0, 1).state_dict() for seed in (0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize("tied", [True, False])
def test_folder_loads_with_the_auto_classes(tmp_path, tied):
    spec = scratch(tie_word_embeddings=tied)
    build(spec, 0, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert len(tokenizer) == model.config.vocab_size == 262
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == 1
    assert tokenizer.pad_token_id == model.config.pad_token_id == model.generation_config.pad_token_id == 0
    assert model.config.tie_word_embeddings is tied
    assert model.dtype == torch.float32
    assert model.generation_config.to_diff_dict().keys() <= {"eos_token_id", "pad_token_id", "transformers_version"}


def test_text_survives_the_tokenizer_before_and_after_saving(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for text in ("23+58=81", " two  spaces\n\ttab ", "héllo wörld 日本 🙂", "user assistant <|user|> <|end|>x", ""):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids
    assert len(tokenizer("23+58")["input_ids"]) == 5
    assert tokenizer("<|user|><|end|>")["input_ids"] == [3, 1]


def test_materialise_builds_a_scratch_model_and_passes_a_path_through(tmp_path):
    path = materialise(scratch(), 0, tmp_path / "base")
    assert path == str(tmp_path / "base")
    assert materialise(PretrainedModel(path=path), 0, tmp_path / "unused") == path
    assert not (tmp_path / "unused").exists()
    assert context_length(scratch(), path) == 256


def test_another_chat_template_is_warned_about_and_stays_with_the_model(tmp_path, caplog):
    path = materialise(scratch(), 0, tmp_path / "base")
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    spec = PretrainedModel(path=path, chat_template=str(template))
    mine = materialise(spec, 0, tmp_path / "mine")
    assert "differs from the template stored with" in caplog.text
    assert AutoTokenizer.from_pretrained(mine).chat_template == template.read_text()
    assert AutoTokenizer.from_pretrained(path).chat_template == build_tokenizer().chat_template
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (path, mine)]
    assert torch.equal(models[0].lm_head.weight, models[1].lm_head.weight)

    caplog.clear()
    template.write_text(build_tokenizer().chat_template)
    materialise(spec, 0, tmp_path / "same")
    assert not caplog.records


@pytest.mark.parametrize("load", [lambda *a: load_causal_lm(*a, torch.float32), load_tokenizer, context_length])
def test_an_absent_model_names_the_recipe_line(load, tmp_path):
    with pytest.raises(ModelError, match=f"model.path: there is no folder {tmp_path}/none"):
        load(PretrainedModel(path="x"), str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"(?s)model.path: cannot load the \w+ of .*model.path=FOLDER"):
        load(PretrainedModel(path="x"), str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("path", "reason", "told"),
    [
        (
            "nosuch",
            "We couldn't connect to the hub.\nDetails.",
            "We couldn't connect to the hub.\nThere is no folder `nosuch` here, so it was taken for a hub id: ",
        ),
        (
            ".",
            "None of these:\n(1) this\n(2) that",
            "None of these: (1) this (2) that\nA model's folder holds config.json, tokenizer files and weights "
            "(*.safetensors); this one lacks something.",
        ),
    ],
)
def test_a_folder_that_lacks_something_and_a_name_that_is_none_are_told_apart(path, reason, told):
    def load():
        raise OSError(reason)

    with pytest.raises(ModelError) as caught:
        naming_the_line(path, "tokenizer", load)
    assert str(caught.value).startswith(f"model.path: cannot load the tokenizer of {path}: {told}")
    assert str(caught.value).endswith("model.path=FOLDER.")


def test_a_template_file_that_is_not_there_names_the_recipe_line(tmp_path):
    path = materialise(scratch(), 0, tmp_path / "base")
    with pytest.raises(ModelError, match=r"model.chat_template: cannot read none.jinja: No such file"):
        materialise(PretrainedModel(path=path, chat_template="none.jinja"), 0, tmp_path / "mine")


def test_weights_that_would_be_random_are_an_error(tmp_path):
    build(scratch(layers=1), 0, tmp_path)
    config = tmp_path / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 2').replace("layer_types", "_")
    )
    with pytest.raises(ModelError, match=r"12 weights of .* are missing or misshapen \(first: model.layers.1"):
        load_causal_lm(scratch(), str(tmp_path), torch.float32)


def test_dtype_by_name_and_by_itself():
    assert resolve_dtype("bfloat16") is torch.bfloat16
    assert resolve_dtype("auto") is (torch.bfloat16 if torch.cuda.is_available() else torch.float32)


def stretched(path, folder, **scaling):
    spec = PretrainedModel.model_validate({"path": path, "rope_scaling": scaling})
    return spec, materialise(spec, 0, folder)


def test_linear_rope_scaling_divides_positions_and_lengthens_the_context(tmp_path):
    path = materialise(scratch(), 0, tmp_path / "base")
    spec, longer = stretched(path, tmp_path / "linear", rope_type="linear", factor=2.0)
    assert context_length(spec, longer) == 512
    ids, steps = torch.arange(10, 40)[None], torch.arange(30)[None]
    with torch.no_grad():
        original = load_causal_lm(spec, path, torch.float32)(ids, position_ids=steps).logits
        scaled = load_causal_lm(spec, longer, torch.float32)(ids, position_ids=2 * steps).logits
    torch.testing.assert_close(scaled, original)
    assert AutoTokenizer.from_pretrained(longer).chat_template == build_tokenizer().chat_template


def test_yarn_knows_the_original_context_and_is_not_stretched_again(tmp_path):
    path = materialise(scratch(), 0, tmp_path / "base")
    spec, longer = stretched(path, tmp_path / "yarn", rope_type="yarn", factor=4.0)
    rope = AutoModelForCausalLM.from_pretrained(longer).config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("yarn", 4.0, 256)
    assert context_length(spec, longer) == 1024
    with pytest.raises(ModelError, match=r"model.rope_scaling: the model has rope_type yarn already; leave"):
        stretched(longer, tmp_path / "again", rope_type="yarn", factor=2.0)
