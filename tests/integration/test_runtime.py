"""Roles in Ray actors and in this process: the same calls, the same errors."""

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.training import Resources
from rlpipe.runtime import ray_heartbeat, tracebacks
from rlpipe.runtime import ray_runtime as module
from rlpipe.runtime.handle import DeadlineExceeded, NotStarted, RoleDied, Silent, Within, first_ready, results
from rlpipe.runtime.local import LocalRuntime
from rlpipe.runtime.placing import reserve
from rlpipe.runtime.ray_process import RayProcess
from rlpipe.runtime.ray_runtime import RayRuntime
from rlpipe.runtime.roles import PlacementError, RoleSpec, Seat

SOON = Within("train", 20)


class Counter:
    """A role for these tests."""

    def __init__(self, start: int, seat: Seat) -> None:
        if start < 0:
            raise ValueError(f"start must not be negative, is {start}")
        self.count, self.seat = start, seat

    def add(self, amount: int) -> int:
        self.count += amount
        return self.count

    def total(self, array: np.ndarray) -> float:
        return float(array.sum())

    def ones(self, size: int) -> np.ndarray:
        return np.ones(size)

    def where(self) -> Seat:
        return self.seat

    def threads(self) -> int:
        import torch

        return torch.get_num_threads()

    def process(self) -> int:
        return os.getpid()

    def sleep_where_it_hangs(self, seconds: float) -> None:
        time.sleep(seconds)

    def fail(self) -> None:
        raise KeyError("no such thing")


def spec(count: int = 1, start: int = 0, cpus: float = 0.1, name: str = "counter") -> RoleSpec:
    return RoleSpec(name, Counter, lambda seat: (start, seat), count, Resources(cpus=cpus, gpus=0.0), 1, "train")


def start(runtime, role: RoleSpec) -> list:
    started = runtime.start([role])
    started.ready()
    return started.handles[role.name]


class Other(Counter):
    """Another role."""


@pytest.fixture(params=["ray", "local"])
def runtime(request, ray_cluster):
    chosen = RayRuntime(Deadlines(start=60, placement=5)) if request.param == "ray" else LocalRuntime()
    yield chosen
    chosen.stop()


@pytest.fixture
def ray_runtime(ray_cluster):
    chosen = RayRuntime(Deadlines(start=60, placement=5))
    yield chosen
    chosen.stop()


def test_calls_of_one_handle_run_in_order(runtime):
    [counter] = start(runtime, spec())
    assert results([counter.call(SOON, Counter.add, n) for n in (1, 10, 100)]) == [1, 11, 111]


def test_a_pending_is_passed_on_as_its_value(runtime):
    [counter] = start(runtime, spec())
    ones = counter.call(SOON, Counter.ones, 1000)
    assert counter.call(SOON, Counter.total, ones).result() == 1000.0


def test_the_roles_own_error_arrives(runtime):
    [counter] = start(runtime, spec())
    with pytest.raises(KeyError, match="no such thing"):
        counter.call(SOON, Counter.fail).result()
    assert counter.call(SOON, Counter.add, 1).result() == 1


def test_a_constructor_that_fails_is_the_error_of_start(runtime):
    with pytest.raises(ValueError, match="start must not be negative, is -1"):
        start(runtime, spec(start=-1))


def test_seats_meet_on_one_port(ray_runtime):
    counters = start(ray_runtime, spec(count=3))
    seats = results([c.call(SOON, Counter.where) for c in counters])
    assert [(s.index, s.count, s.local_index, s.local_count) for s in seats] == [
        (0, 3, 0, 3), (1, 3, 1, 3), (2, 3, 2, 3),
    ]  # fmt: skip
    assert len({(s.address, s.port) for s in seats}) == 1
    assert [c.name for c in counters] == ["counter[0]", "counter[1]", "counter[2]"]


def test_the_processes_of_a_role_share_the_cores_of_their_node(ray_runtime):
    counters = start(ray_runtime, replace(spec(count=2), threads=0))
    threads = results([c.call(SOON, Counter.threads) for c in counters])
    assert threads == [max(1, os.cpu_count() // 2)] * 2


def test_a_missed_deadline_says_who_and_where(ray_runtime):
    [counter] = start(ray_runtime, spec())
    with pytest.raises(DeadlineExceeded) as caught:
        counter.call(Within("train", 1.0), Counter.sleep_where_it_hangs, 30).result()
    message = str(caught.value)
    assert "counter did not finish Counter.sleep_where_it_hangs within 1 s" in message
    assert "deadlines.train" in message
    assert "time.sleep(seconds)" in message, "the stack of the hanging role must be shown"


def test_a_missed_deadline_says_what_else_is_waited_for(ray_runtime):
    [counter] = start(ray_runtime, spec())
    slow = counter.call(Within("train", 1.0), Counter.sleep_where_it_hangs, 30)
    behind = [counter.call(SOON, Counter.add, 1), counter.call(SOON, Counter.where)]
    lacking = placement_group([{"CPU": 500.0}])
    with pytest.raises(DeadlineExceeded) as caught:
        slow.result()
    remove_placement_group(lacking)
    at, cluster = str(caught.value).splitlines()[1:3]
    assert at == "Its process is at Counter.sleep_where_it_hangs; behind it wait 2: Counter.add, Counter.where."
    assert "The cluster has not given: " in cluster and "1 x {'CPU': 500.0} in a placement group" in cluster
    assert "It has CPU 8, GPU 0, of which free: CPU " in cluster
    assert len(behind) == 2


@contextlib.contextmanager
def stopped(handle):
    """The process of a role hangs."""
    process = handle.pulse(SOON).result()
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@pytest.fixture
def watchful(ray_cluster, monkeypatch):
    monkeypatch.setattr(ray_heartbeat, "SECONDS_BETWEEN_PULSES", 0.5)
    chosen = RayRuntime(Deadlines(start=60, placement=5, heartbeat=4))
    yield chosen
    chosen.stop()


def test_a_process_that_hangs_is_noticed_long_before_a_call_is_overdue(watchful):
    """Also by who waits for another rank of its role, or for what takes its result."""
    started = watchful.start([spec(count=2), spec(name="engine")])
    started.ready()
    (sound, hung), [engine] = started.handles["counter"], started.handles["engine"]
    began, long = time.monotonic(), Within("train", 100)
    with stopped(hung):
        waits = {
            "all of them": lambda: results([rank.call(long, Counter.add, 1) for rank in (sound, hung)]),
            "another rank": lambda: sound.call(long, Counter.sleep_where_it_hangs, 60).result(),
            "who gets its result": lambda: engine.call(long, Counter.add, hung.call(long, Counter.add, 1)).result(),
        }
        for wait in waits.values():
            with pytest.raises(Silent, match=r"^counter\[1\] gave no sign of life within 4 s") as caught:
                wait()
            assert caught.value.who == "counter[1]"
    assert time.monotonic() - began < 20


def test_one_that_computes_for_long_gives_signs_of_life_whatever_another_one_does(watchful):
    """Of processes that can be replaced alone: they do not wait for each other."""
    sound, hung = start(watchful, replace(spec(count=2), again=(0, None)))
    with stopped(hung):
        assert sound.call(SOON, Counter.sleep_where_it_hangs, 6).result() is None


def test_a_killed_role_is_named(ray_runtime):
    [counter] = start(ray_runtime, spec())
    os.kill(counter.call(SOON, Counter.process).result(), signal.SIGKILL)
    with pytest.raises(RoleDied, match=r"counter died during Counter.add \(train\)"):
        counter.call(SOON, Counter.add, 1).result()


def test_a_stopped_role_that_cannot_answer_is_said_to_be_so(ray_runtime):
    [counter] = start(ray_runtime, spec())
    process = counter.call(SOON, Counter.process).result()
    os.kill(process, signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineExceeded, match="its process does not answer"):
            counter.call(Within("train", 1.0), Counter.add, 1).result()
    finally:
        os.kill(process, signal.SIGCONT)


def test_what_does_not_fit_is_an_error_with_the_recipe_line(ray_cluster):
    runtime = RayRuntime(Deadlines(start=60, placement=1))
    with pytest.raises(PlacementError) as caught:
        start(runtime, spec(count=2, cpus=500.0))
    message = str(caught.value)
    assert "counter: 2 x {'CPU': 500.0}" in message and "train.resources" in message
    assert "deadlines.placement" in message


def test_first_ready_gives_the_finished_ones(ray_runtime):
    slow, fast = start(ray_runtime, spec(count=2))
    waiting = slow.call(SOON, Counter.sleep_where_it_hangs, 5)
    done = fast.call(SOON, Counter.add, 1)
    assert first_ready([waiting, done], 4) == [done]
    assert first_ready([], 1) == []


def guest(name: str = "guest", count: int = 2, start: int = 100) -> RoleSpec:
    # Resources that the cluster does not have: nothing is reserved for it.
    wants = Resources(cpus=1000.0, gpus=0.0)
    return RoleSpec(name, Other, lambda seat: (start, seat), count, wants, 1, "reference", shares="counter")


def test_a_role_that_shares_lives_in_the_processes_of_the_other(ray_runtime):
    # The guest stands before its host: who lives where does not depend on the order.
    started = ray_runtime.start([guest(), spec(count=2), spec(name="engine", cpus=0.2), guest("second", start=200)])
    started.ready()
    processes = {
        name: results([handle.call(SOON, Counter.process) for handle in handles])
        for name, handles in started.handles.items()
    }
    assert processes["guest"] == processes["second"] == processes["counter"]
    assert len({*processes["counter"], *processes["engine"]}) == 3
    seats = results([handle.call(SOON, Counter.where) for handle in started.handles["guest"]])
    assert [(seat.index, seat.count) for seat in seats] == [(0, 2), (1, 2)]
    assert [handle.name for handle in started.handles["guest"]] == ["guest[0]", "guest[1]"]


def test_a_role_that_shares_keeps_its_own_state(ray_runtime):
    started = ray_runtime.start([spec(count=2), guest()])
    started.ready()
    handles = [handle for name in ("counter", "guest") for handle in started.handles[name]]
    assert results([handle.call(SOON, Counter.add, 1) for handle in handles]) == [1, 1, 101, 101]


def test_only_the_owner_s_bundles_are_reserved(ray_runtime):
    ray_runtime.start([spec(count=2), spec(name="engine", cpus=0.2), guest()]).ready()
    assert reserved(ray_runtime) == [[{"CPU": 0.1}, {"CPU": 0.1}, {"CPU": 0.2}]]


def test_who_can_be_replaced_alone_has_a_placement_group_alone(ray_runtime):
    alone = replace(spec(count=2, name="engine", cpus=0.2), again=(0, None))
    ray_runtime.start([alone, spec(count=2), guest()]).ready()
    assert reserved(ray_runtime) == [[{"CPU": 0.2}], [{"CPU": 0.2}], [{"CPU": 0.1}, {"CPU": 0.1}]]


def reserved(runtime: RayRuntime) -> list[list[dict[str, float]]]:
    """The bundles of each placement group that the runtime holds now; any other is removed."""
    groups = {process.place.group.id: process.place.group for process in runtime._processes}
    assert created() == {group.id.hex() for group in groups.values()}
    return [group.bundle_specs for group in groups.values()]


def test_a_guest_whose_constructor_fails_is_the_error_of_start(ray_runtime):
    with pytest.raises(ValueError, match="start must not be negative, is -1"):
        ray_runtime.start([spec(count=2), guest(start=-1)]).ready()


def test_what_a_cluster_cannot_give_names_owners_and_guests(ray_runtime):
    with pytest.raises(PlacementError) as caught:
        ray_runtime.start([spec(count=2, cpus=1000), guest()])
    assert "counter: 2 x {'CPU': 1000.0}   (recipe: train.resources" in str(caught.value)
    assert "guest: nothing of its own, in the processes of counter" in str(caught.value)


def test_of_two_runs_neither_holds_half_of_what_it_needs(ray_cluster):
    """Five of the eight CPUs each."""
    wanted = [replace(spec(count=5, name="engine", cpus=1.0), again=(0, None))]
    first = reserve(wanted, 10)["engine"]
    with ThreadPoolExecutor() as beside:
        waiting = beside.submit(reserve, wanted, 30)
        time.sleep(1.0)
        assert not waiting.done() and len(created()) == 5
        for place in first:
            place.give_back()
        second = waiting.result()["engine"]
    assert created() == {place.group.id.hex() for place in second}
    with pytest.raises(PlacementError, match=r"engine: 5 x \{'CPU': 1.0\}"):
        reserve(wanted, 1)
    assert created() == {place.group.id.hex() for place in second}, "one that gave up holds nothing"
    for place in second:
        place.give_back()


@pytest.mark.parametrize("wait", [1, 2, 3], ids=["for all at once", "for the first", "for the second"])
def test_who_is_interrupted_while_it_reserves_holds_nothing(wait, ray_cluster, monkeypatch):
    waits, real = [], PlacementGroup.wait

    def interrupted(group, seconds):
        waits.append(group)
        if len(waits) == wait:
            raise KeyboardInterrupt
        return real(group, seconds)

    monkeypatch.setattr(PlacementGroup, "wait", interrupted)
    before = asked_for()
    with pytest.raises(KeyboardInterrupt):
        reserve([replace(spec(count=2, name="engine"), again=(0, None))], 10)
    assert len(waits) == wait and asked_for() == before


def created() -> set[str]:
    return {i for i, table in ray.util.placement_group_table().items() if table["state"] == "CREATED"}


def asked_for() -> set[str]:
    return {i for i, table in ray.util.placement_group_table().items() if table["state"] != "REMOVED"}


class SlowToBuild(Counter):
    """Builds at once, and later for longer than anybody waits."""

    def __init__(self, seconds: float) -> None:
        time.sleep(seconds)


def test_one_that_takes_long_to_start_is_told_of_as_such_and_where_it_stands(ray_cluster):
    runtime = RayRuntime(Deadlines(start=20, placement=5))
    try:
        slow = RoleSpec("slow", SlowToBuild, lambda seat: (0.0,), 1, spec().resources, 1, "rollout", again=(60.0,))
        [handle] = start(runtime, slow)
        handle._deadlines = Deadlines(start=2)
        late = r"(?s)^slow did not finish building SlowToBuild within 2 s .*at building SlowToBuild.*It stands at:\n--"
        with pytest.raises(NotStarted, match=late):
            handle.restart().result()
    finally:
        runtime.stop()


def test_a_gang_whose_processes_do_not_come_up_is_told_of_after_one_deadline(ray_cluster, monkeypatch):
    runtime = RayRuntime(Deadlines(start=60, placement=60))
    try:
        started = runtime.start([spec(count=2)])
        started.ready()
        started._deadlines = Deadlines(start=2)
        begin = RayProcess.restart

        def restart_and_stop(process):
            begin(process)
            os.kill(ray.get(process.host.pulse.remote()), signal.SIGSTOP)

        monkeypatch.setattr(RayProcess, "restart", restart_and_stop)
        monkeypatch.setattr(module, "_seats", lambda *_: pytest.fail("they were waited for once more"))
        with pytest.raises(NotStarted, match=r"^counter\[0\] did not finish its process start within 2 s"):
            started.restart(["counter"])
    finally:
        runtime.stop()


def test_an_error_of_a_role_is_told_with_its_role_its_place_and_its_line_once(ray_runtime):
    _, counter = start(ray_runtime, spec(count=2))
    with pytest.raises(KeyError) as raised:
        counter.call(SOON, Counter.fail).result()
    first, *lines = tracebacks.told(raised.value).splitlines()
    assert first.startswith("counter[1] failed, on node ") and ", in process " in first
    assert lines[0] == "Traceback (most recent call last):" and lines[-1] == "KeyError: 'no such thing'"
    assert sum("  File " in line for line in lines) == 1, "the role's own frame, and none of what called it"
    assert lines[2].strip() == 'raise KeyError("no such thing")'
