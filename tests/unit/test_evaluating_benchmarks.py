"""What lm-evaluation-harness is told of a model."""

import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlpipe.pipelines.evaluating.benchmarks import _model_arguments
from rlpipe.recipe.benchmarks import Benchmarks
from rlpipe.recipe.rollout import Rollout
from rlpipe.rollout.engine import vllm_rank


@pytest.mark.parametrize(("rank", "told"), [(1, 8), (8, 8), (24, 32), (65, 128), (300, 512)])
def test_the_rank_is_one_that_vllm_takes(rank, told):
    recipe = SimpleNamespace(model=SimpleNamespace(), rollout=Rollout(engine="vllm"))
    model = SimpleNamespace(recipe=recipe, model_path="m", dtype="float32", adapter="a", lora_rank=rank)
    backend, arguments = _model_arguments(Benchmarks(tasks=["t"]), model)
    assert (backend, arguments["max_lora_rank"], arguments["lora_local_path"]) == ("vllm", told, "a")


def test_vllm_takes_all_of_them():
    """As its source has them: to import it takes seconds."""
    source = Path(find_spec("vllm").origin).parent / "config" / "lora.py"
    listed = re.search(r"MaxLoRARanks = Literal\[([\d, ]+)\]", source.read_text())
    assert {vllm_rank(rank) for rank in range(1, 513)} <= set(map(int, listed[1].split(",")))
