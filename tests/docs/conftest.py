"""Documents are run with what recipes are run with."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import shrink
import warm


@pytest.fixture(scope="session")
def warm_rlpipe():
    """rlpipe and Python, with their imports done once."""
    return warm.shared()


@pytest.fixture(scope="session")
def local(tmp_path_factory):
    """A tiny model and a few records on disk, instead of the hub."""
    folder = tmp_path_factory.mktemp("local")
    shrink.make_local(folder)
    return folder
