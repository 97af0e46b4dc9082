"""A node whose network is cut: its engine is there and computes, and nobody can reach it."""

import subprocess

import pytest
from nodes import SOON, Nodes, node_of
from online_runs import RECIPE, REWARD, assert_same, events, train, trained_on

from rlpipe.rollout.pool import EnginePool

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.timeout(900)]
HERE, THERE, NAMESPACE, LINK = "10.213.77.1", "10.213.77.2", "rlpipe-cut", "rlpipe-cut0"


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def cluster():
    """A worker here, and one behind a link that can be cut."""
    try:
        ip("netns", "add", NAMESPACE)
    except OSError as error:
        pytest.skip(f"network namespaces need root: {error}")
    nodes = None
    try:
        ip("link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", NAMESPACE)
        ip("addr", "add", f"{HERE}/24", "dev", LINK)
        ip("link", "set", LINK, "up")
        for words in (
            ("addr", "add", f"{THERE}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", NAMESPACE, *words)
        nodes = Nodes(SOON | {"health_check_timeout_ms": 2000}, HERE)
        yield nodes
    finally:
        if nodes:
            nodes.close()
        ip("netns", "del", NAMESPACE)


def test_a_node_that_is_cut_off_is_lost_and_the_run_goes_on(cluster, tmp_path, monkeypatch):
    cluster.join(1)
    cluster.join(1, cpus=2)  # the policy's: of the engines one has to be elsewhere
    far = cluster.join_from(NAMESPACE, THERE)
    (tmp_path / "digits.py").write_text(REWARD)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    expected = train(tmp_path / "recipe.yaml", tmp_path / "whole")
    cut: list[str] = []
    look = EnginePool._look

    def look_and_cut(pool, *arguments):
        away = (
            [seat for seat in pool._seats["policy"] if seat.serves and node_of(seat.handle) == far] if not cut else []
        )
        if away and away[0].groups and pool._published["policy"].version == 1:
            ip("link", "set", LINK, "down")
            cut.append(away[0].handle.name)
        return look(pool, *arguments)

    monkeypatch.setattr(EnginePool, "_look", look_and_cut)
    changes = ("rollout.engines=2", "rollout.resources.cpus=1", "train.resources.cpus=2", "deadlines.heartbeat=10")
    metrics = train(tmp_path / "recipe.yaml", tmp_path / "run", *changes, debug=False)
    assert_same(metrics, expected, within=1e-5)
    assert trained_on(tmp_path / "run") == trained_on(tmp_path / "whole")
    said = [event["message"] for event in events(tmp_path / "run", "warning")]
    assert len(cut) == 1 and sum(line.startswith(f"{cut[0]} is lost") for line in said) == 1
