"""Offline training whose ranks are killed and hang comes to the end that it would have had."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import test_offline_resume as resume
import torch.distributed as dist
from safetensors.torch import load_file
from trl_stages import Figures

from rlpipe.data.source import load_sources
from rlpipe.models.load import materialise
from rlpipe.pipelines.offline import launch
from rlpipe.pipelines.offline.sft import run_sft
from rlpipe.pipelines.offline.trl_worker import train

pytestmark = [pytest.mark.integration, pytest.mark.soak]

STRUCK = {"step 3": signal.SIGKILL, "step 5": signal.SIGSTOP}
"""What happens to rank 1 at the end of these steps, once each."""


class Struck:
    """The progress of a rank, at whose signs of life it is struck."""

    def __init__(self, progress, folder):
        self.metrics, self._alive, self._folder = progress.metrics, progress.alive, Path(folder)

    def alive(self, doing):
        self._alive(doing)
        file = self._folder / doing
        if dist.get_rank() == 1 and doing in STRUCK and not file.exists():
            file.write_text(f"{os.getpid()} {time.time()}")
            os.kill(os.getpid(), STRUCK[doing])


def train_struck(folder, job, progress):
    train(job, Struck(progress, folder))


def run(folder, report):
    recipe = resume.sft(ranks=2, per_device_train_batch_size=8, zero_stage=2)
    recipe = recipe.model_copy(update={"deadlines": recipe.deadlines.model_copy(update={"heartbeat": 15.0})})
    path = materialise(recipe.model, recipe.seed, folder / "base")
    run_sft(recipe, path, load_sources(recipe.data), folder / "model", False, report)
    return load_file(folder / "model" / "model.safetensors")


def test_ranks_that_are_killed_and_hang_change_nothing(ray_cluster, tmp_path, monkeypatch, caplog):
    whole, struck = Figures(), Figures()
    expected = run(tmp_path / "whole", whole)
    monkeypatch.setattr(launch, "train", partial(train_struck, str(tmp_path)))
    found = run(tmp_path / "struck", struck)

    assert struck == whole  # every figure, each once
    assert [step for step, values in struck if "loss" in values] == [1, 2, 3, 4, 5, 6, 7]
    assert found.keys() == expected.keys()
    assert all(bool((found[name] == expected[name]).all()) for name in expected)
    said = [record.getMessage() for record in caplog.records if "starts again" in record.getMessage()]
    assert [line.rpartition("\n")[2] for line in said] == [
        "SFT training starts again (1 of 3 in a row), from the checkpoint step-000002.",
        "SFT training starts again (1 of 3 in a row), from the checkpoint step-000004.",
    ]
    assert "Rank 1 of SFT training gave no sign of life within 15 s (deadlines.heartbeat)" in said[1]
    for doing in STRUCK:
        assert not psutil.pid_exists(int((tmp_path / doing).read_text().split()[0])), doing
