"""Nodes that are lost under a run: it goes on with what is left, uses a node that joins, and loses nothing."""

import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from idle_role import Role
from nodes import Nodes, lives, node_of
from online_runs import RECIPE, REWARD, assert_same, events, train, trained_on

from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.training import Resources
from rlpipe.rollout.pool import EnginePool
from rlpipe.runtime.handle import Within, results
from rlpipe.runtime.ray_runtime import RayRuntime
from rlpipe.runtime.roles import PlacementError, RoleSpec

pytestmark = pytest.mark.integration
SOON = Within("heartbeat", 10.0)


@pytest.fixture(scope="module")
def cluster():
    found = Nodes(forks=True)
    yield found
    found.close()


def spec(name: str, count: int, cpus: float, again: tuple | None = None) -> RoleSpec:
    return RoleSpec(name, Role, lambda seat: (), count, Resources(cpus=cpus, gpus=0.0), 1, "train", again=again)


def until(condition, seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not come to pass"
        time.sleep(0.1)


def test_with_room_for_one_of_two_lost_engines_one_is_placed_and_ranks_wait_no_longer_than_their_deadline(cluster):
    cluster.have(3)
    runtime = RayRuntime(Deadlines(start=150, placement=4))
    try:
        started = runtime.start([spec("engine", 2, 1.0, again=()), spec("policy", 2, 0.5)])
        started.ready()
        engines, ranks = started.handles["engine"], started.handles["policy"]
        nodes = [node_of(engine) for engine in engines]
        assert len({*nodes, node_of(ranks[0])}) == 3 and node_of(ranks[0]) == node_of(ranks[1])
        for node in nodes:
            cluster.lose(node)
        until(lambda: all(engine.lacking() for engine in engines))
        assert (
            engines[0].lacking() == "room for CPU 1, GPU 0. The cluster has CPU 1, GPU 0, of which free: CPU 0, GPU 0."
        )
        [joined] = cluster.join()
        until(lambda: not all(engine.lacking() for engine in engines))
        [placed] = [engine for engine in engines if not engine.lacking()]
        placed.restart().result()
        assert node_of(placed) == joined and placed.call(SOON, Role.count).result() == 1
        assert results([rank.call(SOON, Role.count) for rank in ranks]) == [1, 1], "the others have gone on"

        cluster.lose(node_of(ranks[0]))
        began = time.monotonic()
        with pytest.raises(PlacementError, match=r"(?s)within 4 s \(deadlines.placement\).*policy: 2 x \{'CPU': 0.5\}"):
            started.restart(["policy"])
        assert 4 <= time.monotonic() - began < 15
    finally:
        runtime.stop()


def test_a_lost_engine_leaves_its_room_to_a_lost_training_role_that_has_none(cluster):
    """It has been given a place on the node that is left, and has not begun there when the training role asks."""
    cluster.have(0)
    [small] = cluster.join(cpus=1)
    [large] = cluster.join(cpus=2)
    runtime = RayRuntime(Deadlines(start=150, placement=60))
    try:
        started = runtime.start([spec("engine", 1, 1.0, again=()), spec("policy", 1, 2.0)])
        started.ready()
        [engine], [policy] = started.handles["engine"], started.handles["policy"]
        assert (node_of(engine), node_of(policy)) == (small, large)
        cluster.lose(small)
        until(engine.lacking)
        [left] = cluster.join(cpus=2)
        until(lambda: node_of(engine) == left)
        cluster.lose(large)
        until(policy.lacking)
        with ThreadPoolExecutor() as beside:
            restart = beside.submit(started.restart, ["policy"])
            until(lambda: "room for CPU 1, GPU 0, after the training roles" in engine.lacking())
            assert engine.moved(), "what it loses by that is no fault of its own"
            restart.result()
        assert node_of(policy) == left and policy.call(SOON, Role.count).result() == 1
        assert engine.lacking().startswith("room for CPU 1, GPU 0. The cluster has CPU 2, GPU 0, of which free: CPU 0,")
        [joined] = cluster.join(cpus=1)
        until(lambda: not engine.lacking())
        engine.restart().result()
        assert node_of(engine) == joined and engine.call(SOON, Role.count).result() == 1
    finally:
        runtime.stop()
        cluster.have(0)  # other tests take nodes of one CPU


@pytest.fixture
def recipe_file(tmp_path):
    """Two engines of a CPU each, and two ranks that share one."""
    (tmp_path / "digits.py").write_text(REWARD)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


CHANGES = (
    "rollout.resources.cpus=1", "rollout.engines=2", "train.resources.cpus=0.5", "train.ranks=2", "train.zero_stage=2",
    "train.save_steps=1", "deadlines.heartbeat=10", "deadlines.placement=60", "evaluation.every=100",
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    """The run that nothing happens to, on the same cluster, by its changes of the recipe."""
    runs: dict[tuple[str, ...], tuple] = {}

    def of(*changes):
        if changes not in runs:
            cluster.have(3)
            folder = tmp_path_factory.mktemp("undisturbed")
            (folder / "digits.py").write_text(REWARD)
            (folder / "recipe.yaml").write_text(RECIPE)
            done = train(folder / "recipe.yaml", folder / "run", *CHANGES, *changes, debug=False)
            runs[changes] = folder / "run", done
        return runs[changes]

    return of


VLLM = ("rollout.engine=vllm", "rollout.kv_cache_gib=0.05")


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", [(), VLLM], ids=["transformers", "vllm"])
def test_a_lost_node_takes_an_engine_and_the_run_goes_on_with_one_until_a_node_joins(
    engine, cluster, undisturbed, recipe_file, tmp_path, monkeypatch
):
    place, expected = undisturbed(*engine)
    cluster.have(3)
    seen = strike_an_engine_and_wait_for_it(cluster, monkeypatch)
    metrics = train(recipe_file, tmp_path / "run", *CHANGES, *engine, debug=False)
    assert_same(metrics, expected, within=1e-5)
    assert trained_on(tmp_path / "run") == trained_on(place)
    assert not psutil.pid_exists(seen["process"]) and seen["node"] != seen["new node"] == seen["joined"]
    said = [event["message"] for event in events(tmp_path / "run", "warning")]
    for words in ("is lost", "waits for room for CPU 1", "serves again"):
        assert sum(words in line for line in said) == 1, words
    assert seen["served"] > 0, "the node that joined was used"


def strike_an_engine_and_wait_for_it(cluster, monkeypatch) -> dict:
    """The node of the engine that works for step 2 is lost. Before step 3 a node joins, and that step begins when the
    engine serves there."""
    seen: dict = {}
    look, submit = EnginePool._look, EnginePool.submit

    def look_and_strike(pool, *arguments):
        seat = pool._seats["policy"][0]
        if not seen and seat.groups and pool._published["policy"].version == 1:
            seen.update(node=node_of(seat.handle), process=seat.handle.pulse(SOON).result())
            cluster.lose(seen["node"])
        return look(pool, *arguments)

    def wait_and_submit(pool, model, requests):
        seat = pool._seats["policy"][0]
        if pool._published["policy"].version == 2 and "joined" not in seen:
            until(lambda: look(pool, 0.1) or (seat.revival and seat.revival.lacking))
            [seen["joined"]] = cluster.join()
            until(lambda: look(pool, 0.1) or seat.serves, seconds=150)
            seen["new node"] = node_of(seat.handle)
        submit(pool, model, requests)
        if "joined" in seen:
            seen.setdefault("served", len(seat.groups))

    monkeypatch.setattr(EnginePool, "_look", look_and_strike)
    monkeypatch.setattr(EnginePool, "submit", wait_and_submit)
    return seen


@pytest.mark.soak
def test_a_raylet_that_is_killed_takes_the_ranks_and_they_start_again_on_a_node_that_joins(
    cluster, undisturbed, recipe_file, tmp_path, monkeypatch
):
    place, expected = undisturbed()
    cluster.have(3)
    struck: list[int] = []
    update = Trainer.update

    def update_and_strike(trainer, batch, step):
        if step == 2 and not struck:
            rank = trainer._roles["policy"][1]
            struck.append(rank.pulse(SOON).result())
            struck.append(cluster.kill_raylet(node_of(rank)))
            cluster.join()
        return update(trainer, batch, step)

    monkeypatch.setattr(Trainer, "update", update_and_strike)
    metrics = train(recipe_file, tmp_path / "run", *CHANGES, debug=False)
    assert len(struck) == 2 and not any(map(lives, struck))
    assert_same(metrics, expected, within=0.0)
    assert trained_on(tmp_path / "run") == trained_on(place)
    said = [event["message"] for event in events(tmp_path / "run", "warning")]
    assert sum("start again (1 of 3 in a row)" in line for line in said) == 1
