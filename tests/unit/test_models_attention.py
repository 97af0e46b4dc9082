"""Which attention a model computes with, on machines that this one is not."""

import pytest
import tiny_models
import torch
from transformers import utils

from rlpipe.models.attention import AttentionUnavailable, resolve_attention
from rlpipe.models.load import load_causal_lm
from rlpipe.recipe.model import PretrainedModel


@pytest.fixture
def machine(monkeypatch):
    def of(gpu: bool, package: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(utils, "is_flash_attn_2_available", lambda: package)

    return of


@pytest.mark.parametrize(
    ("dtype", "gpu", "package", "chosen"),
    [
        (torch.bfloat16, True, True, "flash_attention_2"),
        (torch.float32, True, True, "sdpa"),
        (torch.bfloat16, False, True, "sdpa"),
        (torch.bfloat16, True, False, "sdpa"),
    ],
)
def test_auto_takes_flash_attention_where_it_can_be_had(machine, dtype, gpu, package, chosen):
    machine(gpu, package)
    assert resolve_attention("auto", dtype) == chosen
    assert resolve_attention("eager", dtype) == "eager"


def test_what_is_lacking_is_said(machine):
    machine(gpu=True, package=False)
    with pytest.raises(AttentionUnavailable, match=r"the package flash-attn is not installed\. Set it to sdpa"):
        resolve_attention("flash_attention_2", torch.bfloat16)
    machine(gpu=False, package=True)
    with pytest.raises(AttentionUnavailable, match="it needs a GPU, and torch finds none"):
        resolve_attention("flash_attention_2", torch.bfloat16)


@pytest.mark.parametrize("wanted", ["sdpa", "eager"])
def test_a_model_computes_with_what_the_recipe_says(tmp_path, wanted):
    folder = str(tiny_models.save_model(tmp_path, tied=True))
    model = load_causal_lm(PretrainedModel(path=folder, attn_implementation=wanted), folder, torch.float32)
    assert model.config._attn_implementation == wanted


def test_a_model_that_cannot_have_it_is_not_loaded(tmp_path):
    folder = str(tiny_models.save_model(tmp_path, tied=True))
    spec = PretrainedModel(path=folder, attn_implementation="flash_attention_2", dtype="bfloat16")
    with pytest.raises(AttentionUnavailable):
        load_causal_lm(spec, folder, torch.bfloat16)
