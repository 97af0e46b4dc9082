"""Taking results elsewhere and trying them, as a person does: through the commands."""

import io
import json
import re
from pathlib import Path

import pytest
import tiny_models
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_models import adapter_payload
from transformers import AutoTokenizer
from typer.testing import CliRunner

from rlpipe.cli import app
from rlpipe.pipelines.chat import Chat, Style, open_chat, talk


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base model, and a run that trained an adapter on it."""
    top = tmp_path_factory.mktemp("made")
    tiny_models.save_model(top / "base")
    config = LoraConfig(r=9, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    adapter_payload(get_peft_model(tiny_models.load(top / "base"), config), 1, top / "run/adapter")
    assert call("export", str(top / "run/adapter"), "--out", str(top / "run/model"))[0] == 0
    return top


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlpipe.pipelines.results.command", lambda program: program)


def call(*arguments: str, typed: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)), input=typed)
    return result.exit_code, result.stdout, result.stderr


class TestExport:
    def test_a_run_s_model(self, made):
        code, out, _ = call("export", made / "run", "--out", "mine")
        size = Path("mine/model.safetensors").stat().st_size / 1e6
        assert (code, out) == (0, f"wrote  mine (model, {size:.1f} MB of safetensors)\nserve  vllm serve mine\n")
        ours, theirs = (load_file(f / "model.safetensors") for f in (Path("mine"), made / "run/model"))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
        assert AutoTokenizer.from_pretrained("mine").chat_template

    def test_the_merged_model_answers_as_the_adapted_one(self, made):
        tokens = torch.arange(10, 40)[None]
        adapted = PeftModel.from_pretrained(tiny_models.load(made / "base"), made / "run/adapter").eval()
        with torch.no_grad():
            torch.testing.assert_close(
                tiny_models.load(made / "run/model")(tokens).logits, adapted(tokens).logits, atol=1e-5, rtol=1e-5
            )

    def test_the_adapter_alone(self, made):
        code, out, _ = call("export", made / "run", "--adapter-only", "--out", "mine")
        assert code == 0
        assert out.splitlines()[1] == (
            f"serve  vllm serve {made}/base --enable-lora --max-lora-rank 16 --lora-modules mine=mine"
        )
        ours, theirs = (f / "adapter_model.safetensors" for f in (Path("mine"), made / "run/adapter"))
        assert ours.read_bytes() == theirs.read_bytes()
        assert not list(Path("mine").glob("model*"))

    def test_vllm_s_limits_are_told(self, made):
        config = LoraConfig(r=4, use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM")
        get_peft_model(tiny_models.load(made / "base"), config).save_pretrained("dora")
        assert "vLLM does not serve adapters with use_dora" in call("export", "dora", "--adapter-only", "--out", "x")[1]

    def test_an_older_format_becomes_safetensors(self, made):
        model = tiny_models.load(made / "base")
        Path("old").mkdir()
        torch.save(model.state_dict(), "old/pytorch_model.bin")
        for file in (made / "base").glob("*.json"):
            Path("old", file.name).write_bytes(file.read_bytes())
        assert call("export", "old", "--out", "new")[0] == 0
        assert torch.equal(tiny_models.load(Path("new")).lm_head.weight, model.lm_head.weight)
        assert not Path("new/pytorch_model.bin").exists()

    def test_nothing_is_overwritten_unasked(self, made):
        Path("mine").mkdir()
        Path("mine/notes.txt").write_text("mine")
        code, _, error = call("export", made / "run", "--out", "mine")
        assert (code, error) == (
            2,
            "error: mine exists and is left alone; give another --out, or --force to replace it\n",
        )
        assert "no model or adapter folder" in call("export", made / "run", "--out", "mine", "--force")[2]
        assert Path("mine/notes.txt").read_text() == "mine"

    def test_force_replaces_an_earlier_result(self, made):
        assert call("export", made / "base", "--out", "mine")[0] == 0
        assert call("export", made / "run", "--adapter-only", "--out", "mine", "--force")[0] == 0
        assert Path("mine/adapter_config.json").exists() and not Path("mine/config.json").exists()

    @pytest.mark.parametrize("out", ["run/model", "run"])
    def test_never_over_what_is_read(self, made, out):
        error = call("export", made / "run", "--out", made / out, "--force")[2]
        assert "is what is read, or holds it" in error
        assert (made / "run/model/model.safetensors").exists()

    def test_what_is_not_there(self, made):
        Path("run/stages/grpo").mkdir(parents=True)
        Path("run/stages/grpo/model").symlink_to(made / "base")
        assert call("export", "run", "--out", "mine") == (
            2,
            "",
            "error: run holds neither a model nor a trained one (no model/); its stages do: run/stages/grpo\n",
        )
        assert "there is no folder ./none" in call("export", "./none", "--out", "mine")[2]
        assert "is not an adapter" in call("export", made / "base", "--adapter-only", "--out", "mine")[2]

    def test_merge_takes_a_list_of_weights(self, made):
        arguments = ("merge", made / "base", made / "run", "--out", "mean", "--weights")
        assert call(*arguments, "1,b")[2].startswith("error: --weights 1,b: expected numbers separated by commas")
        assert call(*arguments, "3,1")[0] == 0
        assert "methods are linear, ties" in call("merge", "a", "b", "--out", "c", "--method", "tie")[2]


class TestChat:
    def greedy(self, model, ids, count) -> list[int]:
        """The slow way."""
        for _ in range(count):
            ids = [*ids, model(torch.tensor([ids])).logits[0, -1].argmax().item()]
            if ids[-1] == tiny_models.END:
                break
        return ids

    @pytest.mark.parametrize("template", [True, False])
    def test_the_likeliest_tokens_after_the_template_or_the_plain_text(self, made, template):
        model, tokenizer = tiny_models.load(made / "base"), AutoTokenizer.from_pretrained(made / "base")
        if not template:
            tokenizer.chat_template = None
        prompt = tokenizer("<|user|>hi<|end|><|assistant|>" if template else "hi")["input_ids"]
        expected = tokenizer.decode(self.greedy(model, prompt, 8)[len(prompt) :], skip_special_tokens=True)
        pieces = []
        answer = Chat(model, tokenizer, Style(0.0, 8, 0)).answer("hi", pieces.append)
        assert answer == "".join(pieces) == expected != ""

    def test_it_remembers_until_told_to_forget(self, made):
        answers = []
        chat = open_chat(str(made / "base"), None, Style(0.0, 6, 0))
        talk(chat, ["hi", "hi", "/new", "hi"], answers.append)
        first, second, third, _ = "".join(answers).split("\n") if "".join(answers).count("\n") == 3 else [None] * 4
        assert first == third != second

    def test_the_adapter_decides_the_answer(self, made):
        def said(*arguments):
            return call("chat", *arguments, "--max-new-tokens", "8", "--prompt", "hello")[1]

        adapted = said(made / "base", "--adapter", made / "run")
        assert adapted == said(made / "run/adapter") == said(made / "run") != said(made / "base")
        assert adapted.endswith("\n")

    def test_a_prompt_is_one_answer_and_what_is_piped_in_too(self, made):
        asked = ("chat", made / "base", "--max-new-tokens", "8")
        assert call(*asked, typed="two\nlines\n") == call(*asked, "--prompt", "two\nlines")

    def test_the_seed_decides_the_draws(self, made):
        one, again, two = (
            call("chat", made / "base", "--prompt", "x", "--temperature", "1", "--seed", seed)[1] for seed in (1, 1, 2)
        )
        assert one == again != two

    def test_the_model_s_own_sampling_settings_are_left_out(self, made):
        model, tokenizer = tiny_models.load(made / "base"), AutoTokenizer.from_pretrained(made / "base")
        plain = Chat(model, tokenizer, Style(1.0, 20, 5)).answer("hi", io.StringIO().write)
        model.generation_config.top_k, model.generation_config.repetition_penalty = 1, 3.0
        assert Chat(model, tokenizer, Style(1.0, 20, 5)).answer("hi", io.StringIO().write) == plain

    def test_too_long(self, made):
        code, _, error = call("chat", made / "base", "--prompt", "x" * 300)
        assert code == 2 and re.search(r"30\d tokens leave no room in the model's context; /new begins again", error)


def test_the_base_that_an_adapter_names_is_gone(made):
    Path("adapter").mkdir()
    for file in (made / "run/adapter").iterdir():
        Path("adapter", file.name).write_bytes(file.read_bytes())
    settings = json.loads(Path("adapter/adapter_config.json").read_text())
    Path("adapter/adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "/gone/base"}))
    assert "there is no folder /gone/base" in call("export", "adapter", "--out", "mine")[2]
    assert call("export", "adapter", "--base", made / "base", "--out", "mine")[0] == 0
