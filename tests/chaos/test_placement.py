"""Engines over the nodes of a cluster: packed or spread as asked, and later ones when there is room for them."""

import time
from collections import Counter

import pytest
import ray
from idle_role import Role
from nodes import Nodes

from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.training import Resources
from rlpipe.runtime import ray_overdue
from rlpipe.runtime.handle import Within, results
from rlpipe.runtime.ray_runtime import RayRuntime
from rlpipe.runtime.roles import PlacementError, RoleSpec

pytestmark = pytest.mark.integration
SOON = Within("heartbeat", 30.0)


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of two CPUs."""
    found = Nodes(forks=True)
    found.join(3, cpus=2)
    yield found
    found.close()


@pytest.fixture
def runtime(cluster):
    found = RayRuntime(Deadlines(start=150, placement=20))
    yield found
    found.stop()


def engines(count: int, **settings) -> RoleSpec:
    one = Resources(cpus=1.0, gpus=0.0)
    return RoleSpec("engine", Role, lambda seat: (), count, one, 1, "rollout", again=(), **settings)


def ranks(count: int) -> RoleSpec:
    return RoleSpec("policy", Role, lambda seat: (), count, Resources(cpus=0.5, gpus=0.0), 1, "train")


def nodes_of(started, role: str) -> list[str]:
    """Where the processes say that they are."""
    return results([handle.call(SOON, Role.node) for handle in started.handles[role] if handle.begun])


def test_packed_engines_fill_a_node_before_the_next(runtime):
    started = runtime.start([engines(2, nodes="pack")])
    started.ready()
    assert len(set(nodes_of(started, "engine"))) == 1


def test_spread_engines_are_on_as_many_nodes_as_possible_and_ranks_stay_together(runtime):
    started = runtime.start([engines(4, nodes="spread"), ranks(2)])
    started.ready()
    on = nodes_of(started, "engine")
    assert sorted(Counter(on).values()) == [1, 1, 2]
    assert len(set(nodes_of(started, "policy"))) == 1
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    told = [engine.node for engine in started.handles["engine"]]
    assert told == [f"{addresses[node]} ({node[:8]})" for node in on]


def test_a_run_that_may_begin_with_fewer_engines_begins_and_the_others_are_demand_until_a_node_joins(cluster, runtime):
    started = runtime.start([engines(8, nodes="spread", at_least=2), ranks(2)])
    started.ready()
    handles = started.handles["engine"]
    late = [engine for engine in handles if not engine.begun]
    # Five of eight have room: six CPUs, of which the ranks have one.
    assert len(late) == 3 and set(late).isdisjoint(handles[:2])
    assert all(engine.lacking().startswith("room for CPU 1, GPU 0. ") for engine in late)
    assert "has not given: 3 x {'CPU': 1.0} in a placement group" in ray_overdue.cluster()
    [joined] = cluster.join(1, cpus=2)
    ends = time.monotonic() + 30
    while sum(not engine.lacking() for engine in late) < 2:
        assert time.monotonic() < ends, "the node that joined is not used"
        time.sleep(0.1)
    placed = [engine for engine in late if not engine.lacking()]
    results([engine.restart() for engine in placed])
    assert results([engine.call(SOON, Role.node) for engine in placed]) == [joined, joined]
    assert results([engine.call(SOON, Role.count) for engine in handles[:2]]) == [1, 1], "the others have gone on"
    cluster.lose(joined)


def test_without_room_for_the_least_the_error_says_what_may_be_changed(cluster):
    runtime = RayRuntime(Deadlines(start=150, placement=7))
    with pytest.raises(PlacementError, match=r"(?s)within 7 s .*7 of 9 engines must have room .*rollout.min_engines"):
        runtime.start([engines(9, at_least=7)])
    # Nothing stays reserved.
    again = RayRuntime(Deadlines(start=150, placement=20))
    try:
        again.start([engines(6)]).ready()
    finally:
        again.stop()
