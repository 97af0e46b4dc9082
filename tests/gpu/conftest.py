"""What tests on a GPU share: a module's model on disk, and a GPU with nothing left of the test before."""

import gc

import pytest
import torch

from rlpipe.models.scratch import build


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory) -> str:
    """The MODEL of the module."""
    path = tmp_path_factory.mktemp("model")
    build(request.module.MODEL, 0, path)
    return str(path)


@pytest.fixture(autouse=True)
def clean():
    yield
    gc.collect()
    torch.cuda.empty_cache()
