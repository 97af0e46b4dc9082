"""One run with one engine in one process, and with several over the nodes of a cluster, of which one joins under way:
the same answers, from engines that all have the weights of each version."""

import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from nodes import Nodes
from online_runs import RECIPE, REWARD, assert_same, events, train, trained_on

from rlpipe.rollout.pool import EnginePool

pytestmark = [pytest.mark.integration, pytest.mark.soak]

OVER_NODES = (
    "rollout.resources.cpus=1", "rollout.engines=3", "rollout.min_engines=2", "rollout.nodes=spread",
    "train.resources.cpus=0.5", "deadlines.placement=60",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    found = Nodes(forks=True)
    yield found
    found.close()


def recipe_in(folder: Path) -> Path:
    (folder / "digits.py").write_text(REWARD)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


def logprobs(directory: Path) -> np.ndarray:
    files = sorted((directory / "rollouts").glob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file, columns=["behaviour_logprobs"]).to_pylist()]
    return np.concatenate([row["behaviour_logprobs"] for row in rows])


@pytest.mark.parametrize(
    "engine",
    ["transformers", pytest.param("vllm", marks=pytest.mark.soak)],
)
def test_engines_over_nodes_answer_what_one_engine_does(cluster, tmp_path, monkeypatch, engine):
    recipe, changes = recipe_in(tmp_path), (f"rollout.engine={engine}",)
    alone = train(recipe, tmp_path / "alone", *changes)
    cluster.have(3)  # a CPU each: one for the policy, two for engines
    monkeypatch.setattr(EnginePool, "submit", third_joins_before_step(3, cluster))
    several = train(recipe, tmp_path / "several", *changes, *OVER_NODES, debug=False)

    assert trained_on(tmp_path / "several") == trained_on(tmp_path / "alone"), "prompts, tokens and versions"
    assert np.abs(logprobs(tmp_path / "several") - logprobs(tmp_path / "alone")).max() < 1e-5
    assert_same(several, alone, within=1e-5)

    steps = [event["engines"] for event in events(tmp_path / "several", "engines")]
    assert [len(rows) for rows in steps] == [2, 2, 3]
    assert all(row["tokens"] > 0 and row["seconds"] > 0 for rows in steps for row in rows), "all of them answered"
    assert all(len({row["node"] for row in rows}) == len(rows) for rows in steps), "each on a node of its own"
    assert all(0 <= metrics["probe_difference_max"] < 1e-5 for metrics in several.values())
    said = [event["message"] for event in events(tmp_path / "several", "warning")]
    assert [sum(words in line for line in said) for words in ("waits for room for CPU 1", "serves now, too")] == [1, 1]
    places = [event["message"] for event in events(tmp_path / "several", "note") if " engines on " in event["message"]]
    assert [line.split(":")[0] for line in places] == ["2 engines on 2 nodes", "3 engines on 3 nodes"]


def third_joins_before_step(step: int, cluster: Nodes):
    """Prompts of this step are handed out when the engine on the node that has joined serves."""
    submit, look = EnginePool.submit, EnginePool._look

    def submit_later(pool, model, requests):
        published = pool._published.get(model)
        last = pool._seats[model][-1]
        if published is not None and published.version == step - 1 and not last.serves:
            cluster.join()
            ends = time.monotonic() + 120
            while not last.serves:
                assert time.monotonic() < ends, "the node that joined is not used"
                look(pool, 0.1)
            assert last.delivered.found.largest_difference < 1e-5
        submit(pool, model, requests)

    return submit_later
