"""How programs of this environment are named to people."""

import os
import sysconfig

import pytest

from rlpipe.runtime.machine import command


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """An environment with one program, in a folder below the working directory."""
    folder = tmp_path / "project/.venv/bin"
    folder.mkdir(parents=True)
    (folder / "tensorboard").touch(mode=0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(tmp_path / "project")
    return folder


def test_an_inactive_environment_is_named_by_its_path(scripts):
    assert command("tensorboard") == ".venv/bin/tensorboard"


def test_an_active_one_by_the_name_alone(scripts, monkeypatch):
    monkeypatch.setenv("PATH", str(scripts), prepend=os.pathsep)
    assert command("tensorboard") == "tensorboard"


def test_a_program_of_another_environment_is_not_taken_for_ours(scripts, monkeypatch, tmp_path):
    (tmp_path / "tensorboard").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command("tensorboard") == ".venv/bin/tensorboard"
