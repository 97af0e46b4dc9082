"""Offline training that was killed goes on from its last checkpoint as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl_stages import TINY, Figures, train_settings

from rlpipe.data.source import load_preferences, load_sources
from rlpipe.data.storage import Storage
from rlpipe.models.load import materialise
from rlpipe.observe import events
from rlpipe.pipelines.offline.preference import run_preference
from rlpipe.pipelines.offline.sft import run_sft
from rlpipe.recipe.load import load
from rlpipe.recipe.preference import DpoRecipe
from rlpipe.recipe.tasks import SftRecipe
from rlpipe.training.checkpoint import CheckpointMismatch

pytestmark = pytest.mark.integration


class Killed(Exception):
    """Stands for the death of the process: nothing after it happens."""


class Dying(Figures):
    """Reports until a step, and then dies as the trainer tells of it."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def __call__(self, step, values):
        if step >= self.step and "loss" in values:
            raise Killed
        super().__call__(step, values)


DATA = {"kind": "arithmetic", "smallest": 10, "largest": 19, "heldout": 16}  # four batches are all of it


def sft(adapter=None, **settings):
    train = train_settings(max_steps=7, save_steps=2, eval_steps=1, **settings)
    given = {"task": "sft", "model": TINY, "data": DATA, "train": train, "adapter": adapter}
    return SftRecipe.model_validate(given)


def dpo(**settings):
    train = train_settings(max_steps=7, save_steps=2, **settings)
    adapter = {"kind": "lora", "r": 4}
    return DpoRecipe.model_validate({"task": "dpo", "model": TINY, "data": DATA, "train": train, "adapter": adapter})


def run(recipe, folder, report):
    path = materialise(recipe.model, recipe.seed, folder / "base")
    if isinstance(recipe, SftRecipe):
        run_sft(recipe, path, load_sources(recipe.data), folder / "model", True, report)
    else:
        run_preference(recipe, path, load_preferences(recipe.data), folder / "model", True, report)
    return weights(folder)


def weights(folder):
    """Of the result: the model's, or of an adapter that does not merge its own."""
    files = [folder / "model" / "model.safetensors", folder / "adapter" / "adapter_model.safetensors"]
    return load_file(next(file for file in files if file.exists()))


def by_step(figures, name):
    """Of a step that was done again, the last value."""
    return {step: values[name] for step, values in figures if name in values}


DELTA_LORA = {"kind": "delta_lora", "r": 4, "start_step": 1}
ADALORA = {"kind": "adalora", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1}
BOTTLENECK = {"kind": "bottleneck", "reduction_factor": 8}
FAST = {"learning_rate": 1e-2, "warmup_steps": 0}
CASES = {
    "sft, ZeRO-3": lambda: sft(zero_stage=3),
    "the best of sft": lambda: sft(load_best_model_at_end=True, optimizer={"learning_rate": 0.3}),
    "dpo, an adapter, ZeRO-2": lambda: dpo(zero_stage=2),
    "weights that move under Delta-LoRA": lambda: sft(DELTA_LORA, optimizer=FAST),
    "bottleneck layers, ZeRO-2": lambda: sft(BOTTLENECK, zero_stage=2),
    "ranks that AdaLoRA allots, ZeRO-3": lambda: sft(ADALORA, zero_stage=3, optimizer=FAST),
}


@pytest.mark.parametrize("case", CASES)
def test_what_goes_on_ends_as_what_was_never_killed(case, tmp_path):
    recipe, whole, killed, after = CASES[case](), Figures(), Dying(step=6), Figures()
    expected = run(recipe, tmp_path / "whole", whole)
    with pytest.raises(Killed):
        run(recipe, tmp_path / "killed", killed)
    assert not (tmp_path / "killed" / "adapter").exists()
    assert sorted(path.name for path in (tmp_path / "killed" / "checkpoints").glob("s*")) == [
        "step-000002",
        "step-000004",
    ]

    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"ranks": 2})})
    with pytest.raises(CheckpointMismatch, match=r"was written with train\.ranks=1"):
        run(other, tmp_path / "killed", after)
    found = run(recipe, tmp_path / "killed", after)

    assert [step for step, values in after if "loss" in values] == [5, 6, 7]  # it does not begin again
    for name in ("loss", "grad_norm", "learning_rate", "tokens", "heldout_loss"):
        assert by_step(killed + after, name) == by_step(whole, name), name
    assert by_step(after, "heldout_best_step") == by_step(whole, "heldout_best_step")
    assert found.keys() == expected.keys()
    assert all(bool((found[name] == expected[name]).all()) for name in expected)
    last = tmp_path / "whole" / "checkpoints" / "step-000007"
    if not recipe.train.load_best_model_at_end:  # a checkpoint holds what the result does
        assert all(bool((tensor == expected[name]).all()) for name, tensor in weights(last).items())
    if (last / "model").exists():
        AutoModelForCausalLM.from_pretrained(last / "model")


@pytest.mark.parametrize("case", ["sft, ZeRO-3", "the best of sft"])
def test_behind_the_checkpoint_of_the_last_step_nothing_is_trained(case, tmp_path):
    """As when it died while it wrote its result."""
    recipe, after = CASES[case](), Figures()
    expected = run(recipe, tmp_path, Figures())
    if not recipe.train.load_best_model_at_end:
        shutil.rmtree(tmp_path / "model")
    found = run(recipe, tmp_path, after)
    assert not [step for step, values in after if "loss" in values]
    assert all(bool((found[name] == expected[name]).all()) for name in expected)


RECIPE = f"""
task: sft
name: killed
model: {json.dumps(TINY)}
data: {json.dumps(DATA)}
train: {{max_steps: 60, per_device_train_batch_size: 16, logging_steps: 1, save_steps: 4, threads: 1}}
"""


def test_a_run_killed_at_any_moment_is_resumed_by_one_command(warm_rlpipe, tmp_path):
    """SIGKILL, from outside, as soon as a second checkpoint stands; then the newest checkpoint is damaged, too."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    place = tmp_path / "run"
    command = ["run", str(tmp_path / "recipe.yaml"), "--run-dir", str(place), "--debug"]
    process = subprocess.Popen([sys.executable, "-m", "rlpipe", *command], stdout=subprocess.DEVNULL)
    while not (place / "checkpoints" / "step-000008").is_dir():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    newest = max((place / "checkpoints").glob("step-*"))
    shutil.rmtree(newest / "model")

    resumed = warm_rlpipe.rlpipe(["resume", str(place), "--debug"], tmp_path)
    assert resumed.code == 0, resumed.output
    assert f"{newest.name} is damaged" in " ".join(resumed.output.split())
    found, _ = events.read(Storage(place))
    assert [event["kind"] for event in found].count("run_started") == 2
    steps = [event["step"] for event in found if event["kind"] == "metrics" and "loss" in event["metrics"]]
    assert sorted(set(steps)) == list(range(1, 61))
    assert steps.count(1) == 1  # it did not begin again

    expected = run(load(tmp_path / "recipe.yaml"), tmp_path / "whole", Figures())
    weights = load_file(place / "model" / "model.safetensors")
    assert all(bool((weights[name] == tensor).all()) for name, tensor in expected.items())
