"""A node whose network is cut: its engine is there and computes, and nobody can reach it."""

import time

import pytest
import ray
from link import HERE, LINK, NAMESPACE, THERE, far_network, ip
from nodes import SOON, Nodes, lives, node_of
from online_runs import RECIPE, REWARD, assert_same, events, train, trained_on
from ray.exceptions import RayError

from rlpipe.rollout.pool import EnginePool
from rlpipe.runtime.handle import Within

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.fixture
def network():
    """A namespace behind a link that can be cut."""
    with far_network():
        yield


@pytest.fixture
def cluster(network, request):
    """A worker here, and one beyond; the parameter are settings of Ray's own."""
    nodes = Nodes(request.param, HERE, forks=True)
    yield nodes
    nodes.close()


@pytest.fixture
def recipe_file(tmp_path):
    (tmp_path / "digits.py").write_text(REWARD)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


RAY_IS_QUICK = SOON | {"health_check_timeout_ms": 2000}
RAY_IS_SLOW = {"health_check_failure_threshold": 100}
"""It would call the node lost after five minutes."""
CHANGES = ("rollout.engines=2", "rollout.resources.cpus=1", "train.resources.cpus=2", "deadlines.heartbeat=10")


class Cut:
    """The engine beyond loses its link while it works for step 2. If it `heals`, the link is there again when another
    process is to take its place, and step 3 waits until that has come to an end."""

    def __init__(self, far, heals, monkeypatch):
        self.far, self.heals = far, heals
        self.name, self.process, self.call, self.healed = "", 0, None, False
        self.look, self.submit = EnginePool._look, EnginePool.submit
        monkeypatch.setattr(EnginePool, "_look", lambda pool, *arguments: self.looked(pool, *arguments))
        monkeypatch.setattr(EnginePool, "submit", lambda pool, *arguments: self.submitted(pool, *arguments))

    def looked(self, pool, *arguments):
        seats = pool._seats["policy"]
        away = [seat for seat in seats if not self.name and seat.serves and node_of(seat.handle) == self.far]
        if away and away[0].groups and pool._published["policy"].version == 1:
            self.name, self.call = away[0].handle.name, away[0].advancing
            self.process = away[0].handle.pulse(Within("heartbeat", 30)).result()
            ip("link", "set", LINK, "down")
        return self.look(pool, *arguments)

    def submitted(self, pool, model, requests):
        if self.heals and not self.healed and pool._published["policy"].version == 2:
            [seat] = [seat for seat in pool._seats["policy"] if seat.handle.name == self.name]
            self.wait(lambda: self.look(pool, 0.1) or seat.revival, 60)
            ip("link", "set", LINK, "up")
            self.healed = True
            self.wait(lambda: self.look(pool, 0.1) or not lives(self.process), 90)
            self.wait(lambda: self.look(pool, 0.1) or seat.serves or seat.revival.lacking, 180)
        self.submit(pool, model, requests)

    @staticmethod
    def wait(condition, seconds):
        ends = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < ends, "it did not come to pass"


@pytest.mark.parametrize(
    ("cluster", "heals"),
    [(RAY_IS_QUICK, False), (RAY_IS_QUICK, True), (RAY_IS_SLOW, True)],
    ids=["for good", "until after Ray has given the node up", "and Ray has not noticed"],
    indirect=["cluster"],
)
def test_a_node_that_is_cut_off_is_lost_and_the_run_goes_on(cluster, heals, recipe_file, tmp_path, monkeypatch):
    cluster.join(1)
    cluster.join(1, cpus=2)  # the policy's: of the engines one has to be elsewhere
    far = cluster.join_from(NAMESPACE, THERE)
    expected = train(recipe_file, tmp_path / "whole")
    cut = Cut(far, heals, monkeypatch)
    metrics = train(recipe_file, tmp_path / "run", *CHANGES, debug=False)
    assert_same(metrics, expected, within=1e-5)
    assert trained_on(tmp_path / "run") == trained_on(tmp_path / "whole")
    said = [event["message"] for event in events(tmp_path / "run", "warning")]
    assert sum(line.startswith(f"{cut.name} is lost") for line in said) == 1
    assert cut.healed == heals
    if heals:
        with pytest.raises(RayError):  # what it was at, nobody hears of
            ray.get(cut.call.ref, timeout=10)
