"""What a model may bring along: weights that are safetensors, and code of its own where the recipe says so."""

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_models import adapter_payload
from typer.testing import CliRunner

from rlpipe.cli import app
from rlpipe.models import folders
from rlpipe.models.load import ModelError, load_causal_lm, load_config, load_tokenizer, materialise
from rlpipe.models.trained_adapters import put_on
from rlpipe.pipelines import reward_models
from rlpipe.recipe.model import PretrainedModel
from rlpipe.recipe.rewards import ModelReward
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.transformers_engine import TransformersEngine

OWN_CONFIG = """
import pathlib

from transformers import Qwen2Config

pathlib.Path({marker!r}).touch()


class OwnConfig(Qwen2Config):
    model_type = "own"
"""
OWN_MODEL = """
from transformers import Qwen2ForCausalLM

from .configuration_own import OwnConfig


class OwnForCausalLM(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


class Malice:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self):
        return os.mkdir, (str(self._file),)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("trust") / "base")


@pytest.fixture
def pickled(base, tmp_path):
    """The base as folders looked before safetensors."""
    folder = shutil.copytree(base, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_models.load(base).state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def own(base, tmp_path):
    """A model that comes with its own code, which leaves a mark where it is run."""
    folder, mark = shutil.copytree(base, tmp_path / "own"), tmp_path / "the_code_was_run"
    (folder / "configuration_own.py").write_text(OWN_CONFIG.format(marker=str(mark)))
    (folder / "modeling_own.py").write_text(OWN_MODEL)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, mark


def rlpipe(*arguments: str | Path):
    return CliRunner().invoke(app, list(map(str, arguments)))


def engine_spec(folder: Path, **changes) -> EngineSpec:
    return EngineSpec("transformers", str(folder), "float32", (tiny_models.END,), version=0, **changes)


class TestWeights:
    def test_a_pickle_is_refused_before_anything_is_started(self, pickled, tmp_path):
        spec = PretrainedModel(path=str(pickled))
        told = (
            f"model.path: the weights in {pickled} are a pickle (pytorch_model.bin), which may run code when it is "
            "opened; only safetensors are read. To convert them without running any code: "
            f"`rlpipe export {pickled} --out FOLDER`, then give that FOLDER."
        )
        for load in (
            lambda: materialise(spec, 0, tmp_path / "out"),
            lambda: load_causal_lm(spec, str(pickled), torch.float32),
            lambda: TransformersEngine(engine_spec(pickled)),
        ):
            with pytest.raises(ModelError) as error:
                load()
            assert str(error.value) == told

    def test_the_command_that_it_names_converts(self, base, pickled, tmp_path):
        out = tmp_path / "converted"
        done = rlpipe("export", pickled, "--out", out)
        assert done.exit_code == 0, done.output
        ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, base))
        assert ours.keys() == theirs.keys()  # a tied head is not written twice, and the embedding is what stays
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        load_causal_lm(PretrainedModel(path=str(out)), str(out), torch.float32)

    def test_parts_of_a_pickle_are_converted_together(self, base, pickled, tmp_path):
        state = tiny_models.load(base).state_dict()
        names = sorted(state)
        parts = {"pytorch_model-1.bin": names[: len(names) // 2], "pytorch_model-2.bin": names[len(names) // 2 :]}
        for file, part in parts.items():
            torch.save({name: state[name] for name in part}, pickled / file)
        index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
        (pickled / "pytorch_model.bin").unlink()
        (pickled / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        assert rlpipe("export", pickled, "--out", tmp_path / "out").exit_code == 0
        assert load_file(tmp_path / "out/model.safetensors").keys() == load_file(base / "model.safetensors").keys()

    def test_what_runs_code_is_not_converted(self, pickled, tmp_path):
        trap = tmp_path / "trap"
        torch.save({"weight": Malice(trap)}, pickled / "pytorch_model.bin")
        done = rlpipe("export", pickled, "--out", tmp_path / "out")
        assert done.exit_code != 0 and "holds more than tensors" in done.output
        assert not trap.exists() and not (tmp_path / "out").exists()
        torch.load(pickled / "pytorch_model.bin", weights_only=False)  # the trap works
        assert trap.exists()

    def test_formats_of_others_are_told_apart(self, pickled, tmp_path):
        (pickled / "pytorch_model.bin").rename(pickled / "consolidated.00.pth")
        done = rlpipe("export", pickled, "--out", tmp_path / "out")
        assert done.exit_code != 0 and "weight files: consolidated.00.pth" in done.output

    def test_an_adapter_is_held_to_the_same(self, base, tmp_path):
        folder = tmp_path / "adapter"
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        adapter_payload(get_peft_model(tiny_models.load(base), config), 1, folder)
        tensors = load_file(folder / "adapter_model.safetensors")
        (folder / "adapter_model.safetensors").unlink()
        torch.save(tensors, folder / "adapter_model.bin")
        with pytest.raises(ModelError, match=r"are a pickle \(adapter_model.bin\).*rlpipe export"):
            put_on(tiny_models.load(base), base, [folder])
        done = rlpipe("export", folder, "--adapter-only", "--out", tmp_path / "out")
        assert done.exit_code == 0, done.output
        converted = load_file(tmp_path / "out/adapter_model.safetensors")
        assert converted.keys() == tensors.keys() and all(torch.equal(converted[k], tensors[k]) for k in tensors)
        put_on(tiny_models.load(base), base, [tmp_path / "out"])


class TestCode:
    def test_is_not_run_unasked(self, own):
        folder, mark = own
        spec = PretrainedModel(path=str(folder))
        for load in (
            lambda: load_config(spec, str(folder)),
            lambda: load_causal_lm(spec, str(folder), torch.float32),
            lambda: TransformersEngine(engine_spec(folder)),
        ):
            with pytest.raises(ModelError, match=r"not been run.*\n?.*model\.trust_remote_code=true"):
                load()
        assert not mark.exists()

    def test_is_run_where_the_recipe_says_so(self, own):
        folder, mark = own
        spec = PretrainedModel(path=str(folder), trust_remote_code=True)
        assert type(load_causal_lm(spec, str(folder), torch.float32)).__name__ == "OwnForCausalLM"
        assert mark.exists()
        assert len(load_tokenizer(spec, str(folder))) == tiny_models.VOCABULARY
        engine = TransformersEngine(engine_spec(folder, trust_remote_code=True))
        [logprobs] = engine.probe([tiny_models.request(0).prompt_tokens])
        assert len(logprobs) == 8

    def test_of_a_reward_model_has_a_key_of_its_own(self, own):
        folder, mark = own
        unasked, asked = (
            ModelReward(kind="model", path=str(folder), trust_remote_code=trusted) for trusted in (False, True)
        )
        with (
            pytest.raises(ModelError, match=r"^rewards\.mix\.1\.path.*\n.*rewards\.mix\.1\.trust_remote_code=true"),
            reward_models._naming("rewards.mix.1"),
        ):
            load_config(reward_models._model(unasked), str(folder))
        assert not mark.exists()
        assert load_config(reward_models._model(asked), str(folder)).model_type == "own"

    def test_commands_without_a_recipe_never_run_it(self, own, base, tmp_path):
        folder, mark = own
        for arguments in (
            ["chat", folder, "--prompt", "x"],
            ["merge", folder, base, "--out", tmp_path / "out"],
        ):
            done = rlpipe(*arguments)
            assert done.exit_code != 0 and "Commands without a recipe never run such code" in done.output, done.output
        assert rlpipe("export", folder, "--out", tmp_path / "copy").exit_code == 0  # it only copies
        assert not mark.exists()

    def test_a_run_says_which_key_it_is_and_goes_through_with_it(self, own, tmp_path):
        folder, mark = own
        run = [
            "run", "arithmetic/grpo", f"model.path={folder}", "rollout.engine=transformers", "schedule.steps=1",
            "schedule.prompts_per_step=2", "algorithm.group_size=2", "evaluation.every=1", "data.heldout=4",
            "rollout.max_new_tokens=4", "tracking.tensorboard=false", "--debug",
        ]  # fmt: skip
        refused = rlpipe(*run, "--run-dir", tmp_path / "refused")
        assert refused.exit_code == 1 and "model.trust_remote_code=true" in refused.output
        assert not mark.exists()
        # With a template of its own the model is put together anew, elsewhere than model.path says.
        (tmp_path / "template.jinja").write_text((folder / "chat_template.jinja").read_text())
        trusted = ["model.trust_remote_code=true", f"model.chat_template={tmp_path / 'template.jinja'}"]
        done = rlpipe(*run, *trusted, "--run-dir", tmp_path / "run")
        assert done.exit_code == 0, done.output
        made = PretrainedModel(path=str(tmp_path / "run/model"), trust_remote_code=True)
        assert type(load_causal_lm(made, made.path, torch.float32)).__name__ == "OwnForCausalLM"


def test_the_tokenizer_of_a_hub_model_is_copied_and_not_loaded(base, tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(name, allow_patterns):
        asked.update(name=name, allow_patterns=allow_patterns)
        return str(base)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    folders.copy_tokenizer("someone/model", tmp_path / "out")
    assert asked["name"] == "someone/model" and not any("safetensors" in p for p in asked["allow_patterns"])
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
