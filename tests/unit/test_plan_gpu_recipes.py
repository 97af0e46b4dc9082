"""The recipes for GPUs fit the machines that their headers name, and leave none of their GPUs idle."""

import pytest
from typer.testing import CliRunner

from rlpipe.cli import app
from rlpipe.recipe.load import load
from rlpipe.recipe.shipped import folder

MACHINES = {
    "gsm8k/grpo_1gpu": (1, 1, "1x24GB"),
    "gsm8k/grpo_8gpus": (1, 8, "8x80GB"),
    "gsm8k/grpo_32gpus": (4, 8, "8x80GB"),
}


@pytest.mark.parametrize("name", MACHINES)
def test_plan_accepts_it_and_the_gpus_add_up(name):
    nodes, gpus, each = MACHINES[name]
    file = folder() / f"{name}.yaml"
    recipe = load(str(file))
    assert recipe.train.ranks == recipe.rollout.engines * recipe.rollout.tensor_parallel == nodes * gpus
    done = CliRunner().invoke(app, ["plan", str(file), "--gpus", each, "--nodes", str(nodes)])
    assert done.exit_code == 0, done.output
    for rank in range(nodes * gpus):
        assert f"policy {rank} / engine {rank // recipe.rollout.tensor_parallel} " in done.output
