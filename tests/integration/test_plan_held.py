"""What a plan says a policy holds, beside the tensors that two ranks under DeepSpeed have."""

import pytest
import tiny_models
from counted_policy import CountedPolicy
from online_algorithms import MAX_NEW_TOKENS
from online_algorithms import settings as algorithm_settings
from test_policy import shards

from rlpipe.plan.model_files import facts
from rlpipe.plan.processes import spread_of
from rlpipe.plan.rl_roles import BUCKET
from rlpipe.plan.states import states
from rlpipe.plan.weights import weights
from rlpipe.recipe.adapter import LoraAdapter
from rlpipe.recipe.model import PretrainedModel
from rlpipe.training.policy import PolicySpec
from rlpipe.training.sharding import Sharding

pytestmark = pytest.mark.integration

LORA = LoraAdapter(kind="lora", r=4)
PADDING = 256
"""Bytes: DeepSpeed pads what it splits."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tiny_models.save_model(tmp_path_factory.mktemp("model")))


def predicted(folder: str, stage: int, width: int, adapter) -> dict[str, int]:
    held = weights(facts(PretrainedModel(path=folder)).shapes, adapter, None)
    bucket = min(held.trained, BUCKET)
    return states(spread_of(held, width=width, ranks=2, stage=stage, bucket=bucket, on_gpu=False)).resident


@pytest.mark.parametrize(
    ("stage", "dtype", "adapter"),
    [
        (0, "float32", None),
        (1, "float32", None),
        (2, "float32", LORA),
        (1, "bfloat16", None),
        (2, "bfloat16", None),
        (3, "float32", None),
    ],
)
def test_every_part(pair, folder, stage, dtype, adapter):
    spec = PolicySpec(
        model=PretrainedModel(path=folder), path=folder, algorithm=algorithm_settings(), max_new_tokens=MAX_NEW_TOKENS,
        temperature=1.0, total_steps=5, adapter=adapter, dtype=dtype, sharding=Sharding(stage),
    )  # fmt: skip
    pair.build(CountedPolicy, spec)
    pair.call("update", shards(0, 2))
    expected = predicted(folder, stage, 4 if dtype == "float32" else 2, adapter)
    for found in pair.call("held"):
        for part, count in found.items():
            off = 0.1 * expected["weights"] if (stage, part) == (3, "weights") else PADDING  # whole ones count twice
            assert count == pytest.approx(expected.get(part, 0), abs=off), part
