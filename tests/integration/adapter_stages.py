"""Offline stages with an adapter, on the tiny model, for the tests of what adapters do in them."""

import numpy as np
import torch
from pydantic import TypeAdapter
from transformers import AutoModelForCausalLM
from trl_stages import TINY, Figures, train_settings

from rlpipe.data.source import load_judged, load_preferences, load_sources
from rlpipe.models.load import materialise
from rlpipe.pipelines.offline import trl_worker
from rlpipe.pipelines.offline.failures import Launch
from rlpipe.pipelines.offline.preference import run_preference
from rlpipe.pipelines.offline.ray_train import run_remote
from rlpipe.pipelines.offline.reward_model import run_reward_model
from rlpipe.pipelines.offline.sft import prepare, run_sft
from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.tasks import Task
from rlpipe.recipe.training import Resources

LORA = {"kind": "lora", "r": 4}
FAST = {"learning_rate": 1e-2, "warmup_steps": 0}
TOKENS = np.arange(6, 30)


def recipe(task, adapter, **settings):
    train = train_settings(max_steps=3, optimizer=FAST) | settings
    data = {"kind": "arithmetic", "heldout": 32}
    given = {"task": task, "model": TINY, "adapter": adapter, "data": data, "train": train}
    return TypeAdapter(Task).validate_python(given)


def run(task, adapter, folder, **settings):
    settings = recipe(task, adapter, **settings)
    return run_stage(settings, materialise(settings.model, settings.seed, folder / "base"), folder / "model")


def run_stage(settings, path, result):
    """What a stage of any offline task reports."""
    task, figures = settings.task, Figures()
    if task == "sft":
        run_sft(settings, path, load_sources(settings.data), result, True, figures)
    elif task == "reward_model":
        run_reward_model(settings, path, load_preferences(settings.data), result, True, figures)
    else:
        records = (load_judged if task == "kto" else load_preferences)(settings.data)
        run_preference(settings, path, records, result, True, figures)
    return figures


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def scores(model):
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)[None]).logits.numpy()


class _Renumbered:
    def __init__(self, progress, offset):
        self.alive = progress.alive
        self.metrics = lambda step, values: progress.metrics(offset + step, values)


def train_one_after_another(jobs, progress):
    for number, job in enumerate(jobs):
        trl_worker.train(job, _Renumbered(progress, 100 * number))


def on_two_ranks(adapter, alone, stages, **settings):
    """SFT as `run` did it in the folder `alone`, by two ranks: of each ZeRO stage the folder and the losses."""
    folders, jobs = [alone / f"two-{stage}" for stage in stages], []
    for stage, folder in zip(stages, folders, strict=True):
        folder.mkdir()
        split = recipe("sft", adapter, zero_stage=stage, ranks=2, per_device_train_batch_size=8, **settings)
        jobs.append(prepare(split, str(alone / "base"), load_sources(split.data), folder / "model"))
    figures = Figures()
    run_remote(train_one_after_another, jobs, Launch("SFT", 2, Resources(), 1, Deadlines()), figures)
    for number, folder in enumerate(folders):
        own = [values["loss"] for step, values in figures if "loss" in values and step // 100 == number]
        yield folder, own
