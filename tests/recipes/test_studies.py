"""Shipped studies, and a small one run for real: stopped after its first cell, and gone on with."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import shrink

from rlpipe.recipe.load import load
from rlpipe.recipe.shipped import studies
from rlpipe.recipe.study_file import read
from rlpipe.recipe.study_plan import plan

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SMALL = """\
name: small
recipe: arithmetic/grpo
grid:
  rate:
    slow: [train.optimizer.learning_rate=1e-5]
    fast: [train.optimizer.learning_rate=1e-4]
  seed: [0, 1]
repeat_over: seed
debug: true
"""


@pytest.mark.parametrize("name", studies())
def test_every_cell_is_a_valid_recipe(name):
    assert plan(read(name)).cells


@pytest.mark.slow
@pytest.mark.soak
def test_a_study_is_stopped_and_gone_on_with(local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    changes = shrink.shrunk(load("arithmetic/grpo", [f"model.path={local}/FOLDER"]), local)
    command = [sys.executable, "-m", "rlpipe", "study", "small.yaml", f"model.path={local}/FOLDER", *changes]

    stopped = started(command)
    wait_for(lambda: len(rows()) == 2, stopped)
    stopped.send_signal(signal.SIGINT)
    said, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, said
    assert [row[0] for row in rows()] == ["cell", "slow_seed-0"]
    assert "stopped; 3 of 4 cells are left" in said
    first = Path("runs/small/cells/slow_seed-0/events.jsonl")
    before = first.read_bytes(), first.stat().st_mtime_ns

    on = started(command)
    said, _ = on.communicate(timeout=600)
    assert on.returncode == 0, said
    assert [row[0] for row in rows()] == ["cell", "slow_seed-0", "slow_seed-1", "fast_seed-0", "fast_seed-1"]
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert not list(Path("runs/small").glob("set-aside/slow_seed-0*"))
    check_figures()


def check_figures() -> None:
    names, *cells = rows()
    samples = shrink.STEPS * shrink.PROMPTS * shrink.GROUP
    for cell in (dict(zip(names, values, strict=True)) for values in cells):
        assert (cell["steps"], cell["samples"]) == (str(shrink.STEPS), str(samples))
        assert 0 <= float(cell["evaluation/accuracy"]) <= 1
        assert 0 < float(cell["step_seconds"]) < float(cell["seconds"])
        assert 0.2 < float(cell["peak_memory_gib"]) < 4  # torch and transformers in one process
    page = Path("runs/small/study.md").read_text()
    assert "| slow | 2 |" in page and "| fast | 2 |" in page
    assert "study.svg" in page
    assert Path("runs/small/study.svg").read_text().startswith("<svg")
    curves = Path("runs/small/curves.csv").read_text().splitlines()
    assert len([line for line in curves if ",evaluation/accuracy," in line]) == 4 * 2


def started(command: list[str]) -> subprocess.Popen:
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=quiet)


def rows() -> list[list[str]]:
    file = Path("runs/small/results.csv")
    return [line.split(",") for line in file.read_text().splitlines()] if file.exists() else []


def wait_for(condition, process: subprocess.Popen, seconds: float = 300.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
