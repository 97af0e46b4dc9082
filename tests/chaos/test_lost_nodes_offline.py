"""A node that is lost under an offline stage: its ranks start again on another one, from the newest checkpoint."""

import psutil
import pytest
import ray
from nodes import Nodes
from safetensors.torch import load_file
from trl_stages import TINY, Figures, train_settings

from rlpipe.data.source import load_sources
from rlpipe.models.load import materialise
from rlpipe.pipelines.offline.ranks import Ranks
from rlpipe.pipelines.offline.sft import run_sft
from rlpipe.recipe.tasks import SftRecipe

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.timeout(900)]
STEPS, STRUCK_AFTER = 40, 12


@pytest.fixture(scope="module")
def cluster():
    found = Nodes()
    yield found
    found.close()


def run(folder, report):
    train = train_settings(max_steps=STEPS, save_steps=5, per_device_train_batch_size=8, ranks=2, zero_stage=2)
    train["resources"] = {"cpus": 1}
    data = {"kind": "arithmetic", "smallest": 10, "largest": 19, "heldout": 16}
    recipe = SftRecipe.model_validate({"task": "sft", "model": TINY, "data": data, "train": train})
    path = materialise(recipe.model, recipe.seed, folder / "base")
    run_sft(recipe, path, load_sources(recipe.data), folder / "model", False, report)
    return load_file(folder / "model" / "model.safetensors")


def where():
    import os

    return ray.get_runtime_context().get_node_id(), os.getpid()


def test_a_node_that_is_lost_under_sft_changes_nothing(cluster, tmp_path, monkeypatch, caplog):
    cluster.have(3)
    whole, struck = Figures(), Figures()
    expected = run(tmp_path / "whole", whole)
    lost: list[tuple[str, int]] = []
    nodes: list[set[str]] = []
    require = Ranks.require_life

    def look_and_strike(ranks):
        require(ranks)
        if len(nodes) < 2 and len(ranks._heartbeats) == 2 and (not lost or struck[-1][0] > STRUCK_AFTER + 5):
            found = ray.get([process.execute.remote(where) for process in ranks._processes().values()], timeout=60)
            if not lost and struck and struck[-1][0] >= STRUCK_AFTER:
                nodes.append({node for node, _ in found})
                lost.append(found[1])
                cluster.lose(found[1][0])
            elif lost and lost[0] not in found:
                nodes.append({node for node, _ in found})

    monkeypatch.setattr(Ranks, "require_life", look_and_strike)
    found = run(tmp_path / "struck", struck)

    [(node, process)] = lost
    first, then = nodes
    assert node in first and node not in then and len(first) == len(then) == 2 and not psutil.pid_exists(process)
    assert struck == whole  # every figure, each once
    assert all(bool((found[name] == expected[name]).all()) for name in expected) and found.keys() == expected.keys()
    said = [record.getMessage() for record in caplog.records if "starts again" in record.getMessage()]
    assert len(said) == 1 and "SFT training starts again (1 of 3 in a row), from the checkpoint step-0000" in said[0]
