"""A node that is lost under an offline stage: its ranks start again on another one, from the newest checkpoint."""

import psutil
import pytest
from nodes import Nodes, lives
from safetensors.torch import load_file
from trl_stages import TINY, Figures, train_settings

from rlpipe.data.source import load_sources
from rlpipe.models.load import materialise
from rlpipe.pipelines.offline.sft import run_sft
from rlpipe.recipe.tasks import SftRecipe

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.timeout(900)]
STRUCK_AFTER = 12


@pytest.fixture(scope="module")
def cluster():
    found = Nodes()
    yield found
    found.close()


class Struck(Figures):
    """Reports, and has the node of a rank lost after a step."""

    def __init__(self, cluster):
        super().__init__()
        self.cluster, self.lost = cluster, None

    def __call__(self, step, values):
        super().__call__(step, values)
        if step == STRUCK_AFTER and self.lost is None:
            family = psutil.Process().children(recursive=True)
            ranks = [process for process in family if "RayTrainWorker" in " ".join(process.cmdline())]
            self.lost = max(ranks, key=lambda process: process.pid)
            self.cluster.lose(self.cluster.of_raylet(self.lost.ppid()))


def run(folder, report):
    train = train_settings(max_steps=40, save_steps=5, per_device_train_batch_size=8, ranks=2, zero_stage=2)
    train["resources"] = {"cpus": 1}
    data = {"kind": "arithmetic", "smallest": 10, "largest": 19, "heldout": 16}
    recipe = SftRecipe.model_validate({"task": "sft", "model": TINY, "data": data, "train": train})
    path = materialise(recipe.model, recipe.seed, folder / "base")
    run_sft(recipe, path, load_sources(recipe.data), folder / "model", False, report)
    return load_file(folder / "model" / "model.safetensors")


def test_a_node_that_is_lost_under_sft_changes_nothing(cluster, tmp_path, caplog):
    """Two nodes have a rank each, and a third one has room."""
    cluster.have(3)
    whole, struck = Figures(), Struck(cluster)
    expected, found = run(tmp_path / "whole", whole), run(tmp_path / "struck", struck)
    assert struck.lost is not None and not lives(struck.lost.pid)
    assert struck == whole  # every figure, each once
    assert found.keys() == expected.keys()
    assert all(bool((found[name] == expected[name]).all()) for name in expected)
    [said] = [record.getMessage() for record in caplog.records if "starts again" in record.getMessage()]
    assert "SFT training starts again (1 of 3 in a row), from the checkpoint step-0000" in said
