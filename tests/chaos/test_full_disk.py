"""A disk that is full in the middle of a run: the run says so and what is safe, and with room again it goes on."""

import subprocess
from pathlib import Path

import pytest
from online_runs import RECIPE, REWARD, assert_same, train, trained_on

from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.pipelines.run import FAILED, run
from rlpipe.recipe.load import load

SAVES = "train.save_steps=1"


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs root, or CAP_SYS_ADMIN, to mount a small disk: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "digits.py").write_text(REWARD)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def undisturbed(recipe_file):
    place = recipe_file.parent / "whole"
    return place, train(recipe_file, place, SAVES)


def fill(disk: Path, leaving: int) -> None:
    """With a file of somebody else's."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(file.tell() - leaving)


@pytest.mark.parametrize(
    ("leaving", "committed"), [(0, 1), (8 * 1024, 1), (512 * 1024, 2)], ids=["events", "ledger", "checkpoint"]
)
def test_a_full_disk_ends_the_run_with_what_is_safe_and_nothing_is_lost(
    leaving, committed, disk, undisturbed, recipe_file, monkeypatch, capsys
):
    update, filled = Trainer.update, []

    def update_and_fill(trainer, batch, step):
        if step == 2 and not filled:
            filled.append(step)
            fill(disk, leaving)
        return update(trainer, batch, step)

    monkeypatch.setattr(Trainer, "update", update_and_fill)
    place = disk / "run"
    assert run(load(recipe_file, [SAVES]), place, debug=True) == FAILED
    said = " ".join(capsys.readouterr().out.split())
    assert filled == [2] and "Traceback" not in said
    assert "The disk is full: " in said and str(place) in said and "rlpipe resume" in said
    assert f"the checkpoint of step 1 and all steps up to {committed}, and the answers" in said

    (disk / "filler").unlink()
    assert_same(train(recipe_file, place, SAVES), undisturbed[1], within=0.0)
    assert trained_on(place) == trained_on(undisturbed[0])
    ours, theirs = ((d / "model" / "model.safetensors").read_bytes() for d in (place, undisturbed[0]))
    assert ours == theirs
