"""Prompt and prefix tuning: what is learned, what is left when it is off, and who answers with it."""

import numpy as np
import pytest
import tiny_models
import torch
from peft import PeftModel
from pydantic import TypeAdapter
from test_adapter_kinds import PROBES, answers, difference, learn, learned_and_saved
from tiny_models import END, request, teacher_forced
from transformers import AutoTokenizer
from typer.testing import CliRunner

from rlpipe.cli import app
from rlpipe.models import adapters
from rlpipe.recipe.adapter import Adapter
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.transformers_engine import TransformersEngine

HIDDEN, KEY_VALUE, LAYERS, N = 64, 32, 2, 5
KINDS = {
    "prompt": {"kind": "prompt_tuning", "num_virtual_tokens": N},
    "prefix": {"kind": "prefix_tuning", "num_virtual_tokens": N},
    "projected": {
        "kind": "prefix_tuning", "num_virtual_tokens": N, "prefix_projection": True, "encoder_hidden_size": 16,
    },
}  # fmt: skip
TRAINED = {
    "prompt": N * HIDDEN,
    "prefix": N * LAYERS * 2 * KEY_VALUE,
    "projected": N * KEY_VALUE + (KEY_VALUE + 1) * 16 + (16 + 1) * LAYERS * 2 * KEY_VALUE,
}
"""Of the projection: the embeddings, and two layers with biases."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


def adapted(folder, name="prompt", **changes):
    spec = TypeAdapter(Adapter).validate_python(KINDS[name] | changes)
    return adapters.adapt(tiny_models.load(folder), spec, seed=0)


@pytest.fixture(scope="module")
def learned(folder, tmp_path_factory):
    """Of each kind the model that has learned, and its adapter as it was saved."""
    return learned_and_saved({name: adapted(folder, name) for name in KINDS}, tmp_path_factory)


@pytest.mark.parametrize("name", KINDS)
def test_the_number_of_trained_parameters_is_the_formula_s(folder, name):
    model = adapted(folder, name)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == TRAINED[name]


@pytest.mark.parametrize("name", KINDS)
def test_nothing_but_the_prompt_moves(folder, name):
    model = adapted(folder, name)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    learn(model)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) == (not key.startswith("prompt_encoder."))


@pytest.mark.parametrize("name", KINDS)
def test_switched_off_it_is_the_base(folder, learned, name):
    model, base = learned[name][0], answers(tiny_models.load(folder))
    before = answers(model)
    assert difference(before, base) > 1e-2
    required = {key for key, p in model.named_parameters() if p.requires_grad}
    with adapters.switched_off(model):
        assert difference(answers(model), base) < 1e-6
        assert {key for key, p in model.named_parameters() if p.requires_grad} == required
    np.testing.assert_array_equal(answers(model)[0], before[0])


def outputs(model):
    """PEFT's answers: logits of the real tokens."""
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(PROBES[0].astype(np.int64))[None]).logits[0, -len(PROBES[0]) :].numpy()


@pytest.mark.parametrize("name", KINDS)
def test_the_folder_loads_with_peft(folder, learned, name):
    model, directory = learned[name]
    loaded = PeftModel.from_pretrained(tiny_models.load(folder), directory).eval()
    np.testing.assert_allclose(outputs(loaded), outputs(model), atol=1e-5)
    assert np.abs(outputs(model) - outputs(tiny_models.load(folder))).max() > 1e-2


def test_a_prompt_begins_as_its_text(folder):
    text = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "sums"}
    embeddings = adapted(folder, **text, num_virtual_tokens=6).prompt_encoder["default"].embedding.weight
    ids = AutoTokenizer.from_pretrained(folder)("sums")["input_ids"]
    expected = tiny_models.load(folder).get_input_embeddings().weight[(ids * 2)[:6]]
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=0)


def test_a_prompt_begins_as_tokens_of_the_vocabulary_that_the_seed_decides(folder):
    vocabulary = {tuple(row) for row in tiny_models.load(folder).get_input_embeddings().weight.tolist()}
    first, again = (adapted(folder).prompt_encoder["default"].embedding.weight for _ in range(2))
    assert {tuple(row) for row in first.tolist()} < vocabulary
    assert torch.equal(first, again)


class TestTransformersEngine:
    def engine(self, folder, adapter, **changes):
        spec = EngineSpec("transformers", str(folder), "float32", (END,), 0, adapter=str(adapter), **changes)
        return TransformersEngine(spec)

    @pytest.mark.parametrize("name", KINDS)
    def test_it_answers_as_peft_does(self, folder, learned, name):
        model, directory = learned[name]
        engine = self.engine(folder, directory)
        for answer, expected in zip(engine.probe(PROBES), answers(_real(model)), strict=True):
            np.testing.assert_allclose(answer, expected, atol=2e-5)
        engine.submit([request(i, prompt_length=5 + i) for i in range(3)])
        while engine.health().outstanding:
            for t in engine.step():
                expected = teacher_forced(_real(model), t.prompt_tokens, t.response_tokens)
                np.testing.assert_allclose(t.behaviour_logprobs, expected, atol=2e-5)

    def test_virtual_tokens_take_places_of_the_context(self, folder, learned):
        engine = self.engine(folder, learned["prompt"][1])
        engine.submit([request(0, prompt_length=256 - N - 12)])
        with pytest.raises(ValueError, match=f"exceed the engine's max_model_len {256 - N}"):
            engine.submit([request(1, prompt_length=256 - N - 11)])


def _real(model):
    """The model with the logits of the real tokens alone."""

    def call(tokens):
        found = model(input_ids=tokens)
        found.logits = found.logits[:, -tokens.shape[1] :]
        return found

    return call


class TestCommands:
    @pytest.fixture(autouse=True)
    def elsewhere(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("rlpipe.pipelines.results.command", lambda program: program)

    def call(self, *arguments):
        result = CliRunner().invoke(app, list(map(str, arguments)))
        return result.exit_code, result.stdout, result.stderr

    @pytest.mark.parametrize("name", ["prompt", "prefix"])
    def test_a_run_that_left_an_adapter_alone_is_chatted_with(self, folder, learned, name):
        model, directory = learned[name]
        code, said, _ = self.call("chat", directory.parent, "--max-new-tokens", "8", "--prompt", "hi")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("<|user|>hi<|end|><|assistant|>")["input_ids"]
        answer = []
        while len(answer) < 8 and END not in answer:
            answer.append(_real(model)(torch.tensor([ids + answer])).logits[0, -1].argmax().item())
        assert (code, said) == (0, tokenizer.decode(answer, skip_special_tokens=True) + "\n")
        assert self.call("chat", folder, "--adapter", directory.parent, "--max-new-tokens", "8", "--prompt", "hi") == (
            0, said, "",
        )  # fmt: skip

    def test_it_is_not_merged(self, learned):
        directory = learned["prefix"][1]
        for verb in (["merge", directory.parent], ["export", directory.parent]):
            code, _, error = self.call(*verb, "--out", "mine")
            assert code == 2 and "PREFIX_TUNING) adds prompts and changes no weights" in error
            assert "rlpipe chat" in error
        assert "is an adapter" in self.call("export", directory, "--base", directory.parent, "--out", "mine")[2]

    def test_it_is_taken_elsewhere_by_itself(self, learned):
        directory = learned["prompt"][1]
        code, out, _ = self.call("export", directory.parent, "--adapter-only", "--out", "mine")
        assert code == 0 and out.splitlines()[1] == "serve  (vLLM does not serve it; rlpipe chat mine)"
