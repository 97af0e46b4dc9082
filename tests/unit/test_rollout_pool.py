"""The pool over several engines: whole groups, whichever engine serves them."""

import dataclasses
import time
from functools import partial

import numpy as np
import pytest
import tiny_models
from tiny_models import END, request

from rlpipe.recipe.run import Deadlines
from rlpipe.rollout import revival as revival_of_engines
from rlpipe.rollout.carriers import ObjectStore
from rlpipe.rollout.delivery import Publication
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.pool import Barren, EnginePool
from rlpipe.rollout.records import NotCurrent
from rlpipe.rollout.transformers_engine import TransformersEngine
from rlpipe.rollout.worker import RolloutWorker, Slice
from rlpipe.runtime import backoff, revival
from rlpipe.runtime.handle import DeadlineExceeded, GivenUp, NotStarted, RoleDied, Silent, Within
from rlpipe.runtime.local import LocalHandle, LocalPending
from rlpipe.runtime.roles import PlacementError
from rlpipe.weights.packing import pack
from rlpipe.weights.payload import Exported
from rlpipe.weights.verify import Verifier, WeightSyncError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


def spec(folder, **settings) -> EngineSpec:
    return EngineSpec("transformers", str(folder), "float32", (END,), **{"version": 0, **settings})


def pool(folder, engines: int, model: str = "policy", **settings) -> EnginePool:
    workers = [RolloutWorker(spec(folder, **settings)) for _ in range(engines)]
    handles = [LocalHandle(f"{model}[{i}]", worker) for i, worker in enumerate(workers)]
    return EnginePool({model: handles}, Deadlines(rollout=5.0), max_restarts=0)


def published(model, version: int) -> Publication:
    """What a trainer with these weights would send."""
    payload, probe = pack(model.named_parameters()), np.arange(5, dtype=np.int32)
    answer = tiny_models.teacher_forced(model, probe[:1], probe[1:])
    said = (payload, Exported(payload.digest, payload.nbytes), [answer])
    packed, exported, expected = (LocalPending(lambda it=it: it, (), {}) for it in said)
    within = Within("publish", 9.0)
    return Publication(version, ObjectStore(packed, within), exported, expected, [probe], Verifier(1e-4), within)


def drain(engines: EnginePool) -> dict[str, tuple]:
    groups = []
    while engines.outstanding:
        groups += engines.finished(1.0)
    return {group[0].group_id: group for group in groups}


def test_results_do_not_depend_on_the_number_of_engines(folder):
    found = {}
    for engines in (1, 3):
        subject = pool(folder, engines)
        subject.submit("policy", [request(i, prompt_length=4 + i) for i in range(7)])
        groups = drain(subject)
        assert all([t.sample_index for t in group] == [0, 1, 2, 3] for group in groups.values())
        found[engines] = {i: [t.response_tokens.tolist() for t in group] for i, group in groups.items()}
    assert found[1] == found[3]
    assert found[1].keys() == {f"g{i}" for i in range(7)}


def test_groups_stay_together_and_go_where_least_is_to_be_done(folder):
    subject = pool(folder, 2)
    submitted = []
    for seat in subject._seats["policy"]:
        seat.handle._role.submit = submitted.append
    longer = request(0, max_new_tokens=40)
    subject.submit("policy", [longer, request(1), request(2), request(3)])
    assert [[r.group_id for r in share] for share in submitted] == [["g0"], ["g1", "g2", "g3"]]


def test_a_publication_reaches_every_engine_and_is_proven(folder):
    subject = pool(folder, 2, version=None)
    weights = tiny_models.scramble(tiny_models.load(folder), seed=4)
    delivered = subject.publish("policy", published(weights, 6))
    assert delivered.keys() == {"policy[0]", "policy[1]"}
    assert all(engine.found.largest_difference < 1e-5 for engine in delivered.values())
    for seat in subject._seats["policy"]:
        assert seat.handle._role.health().version == 6


def test_groups_that_come_while_engines_sleep_wait_for_the_next_publish(folder):
    """As those of an engine that is lost meanwhile, which others are to take."""
    subject, weights = pool(folder, 2, version=None), tiny_models.scramble(tiny_models.load(folder), seed=4)
    subject.publish("policy", published(weights, 1))
    subject.sleep("policy")
    subject.submit("policy", [request(i) for i in range(3)])
    assert subject.finished(0.0) == [], "and nobody was told NotCurrent"
    subject.publish("policy", published(weights, 2))
    found = drain(subject)
    assert found.keys() == {"g0", "g1", "g2"}
    assert {t.versions[0].version for group in found.values() for t in group} == {2}


def test_an_engine_that_starts_while_others_go_to_sleep_sleeps_too(folder, monkeypatch):
    subject, weights = pool(folder, 2, version=None), tiny_models.scramble(tiny_models.load(folder), seed=4)
    subject.publish("policy", published(weights, 1))
    seat, wanted = subject._seats["policy"][1], ["first"]
    steps = revival_of_engines.serving(seat.handle, lambda: wanted[0], Within("publish", 9.0))
    seat.handle._again = lambda: RolloutWorker(spec(folder, version=None))
    assert next(steps) is not None, "its start"
    wanted[0] = "asleep"
    slept = []
    monkeypatch.setattr(TransformersEngine, "sleep", lambda engine: slept.append(engine))
    next(steps)
    assert slept == [seat.handle._role._engine] and next(steps) is None and next(steps) is None
    wanted[0] = published(weights, 2)
    with pytest.raises(StopIteration) as served:
        while True:
            next(steps)
    assert served.value.value.found.largest_difference < 1e-5


def test_models_have_engines_of_their_own(folder, tmp_path):
    other = tiny_models.save_model(tmp_path, seed=9)
    handles = {
        name: [LocalHandle(f"{name}[0]", RolloutWorker(spec(path)))]
        for name, path in (("policy", folder), ("judge", other))
    }
    subject = EnginePool(handles, Deadlines(), max_restarts=0)
    subject.submit("policy", [request(0)])
    policy = drain(subject)["g0"]
    subject.submit("judge", [request(0)])
    judge = drain(subject)["g0"]
    assert [t.response_tokens.tolist() for t in policy] != [t.response_tokens.tolist() for t in judge]


def test_aborted_groups_are_never_handed_over(folder):
    subject = pool(folder, 2)
    subject.submit("policy", [request(i) for i in range(4)])
    subject.abort(["g1", "g2"])
    assert drain(subject).keys() == {"g0", "g3"}


def test_nothing_outstanding_returns_at_once(folder):
    assert pool(folder, 1).finished(60.0) == []


def test_an_error_of_an_engine_is_raised_to_the_caller(folder):
    subject = pool(folder, 1, version=None)
    subject.submit("policy", [request(0)])
    with pytest.raises(NotCurrent):
        subject.finished(1.0)


def test_an_engine_that_finishes_nothing_is_named_at_the_deadline(folder):
    subject = pool(folder, 2)
    for seat in subject._seats["policy"]:
        seat.handle._role.advance = lambda seconds: Slice([], 1, seconds)
    subject.submit("policy", [request(0)])
    with pytest.raises(Barren, match=r"policy\[0\] \(rollout\): .* any of the 1 groups .* is 5 s"):
        while True:
            subject.finished(0.0)


def test_a_slice_ends_on_time_and_early_when_all_is_done(folder):
    worker = RolloutWorker(spec(folder))
    assert worker.advance(60.0).finished == [] and worker.advance(60.0).steps == 0
    worker.submit([request(0, max_new_tokens=200)])
    first = worker.advance(0.0)
    assert first.finished == [] and first.steps == 1 and first.seconds > 0
    assert worker.health().outstanding == 4
    assert len(worker.advance(60.0).finished) == 4
    assert worker.health().outstanding == 0


class Mortal(RolloutWorker):
    """An engine whose process dies at its n-th slice, n counted over all processes in its place; the deaths to come
    stand in `dies_at`."""

    def __init__(self, spec: EngineSpec, dies_at: list[int], slices: list[int]) -> None:
        super().__init__(spec)
        self._dies_at, self._slices = dies_at, slices

    def advance(self, seconds: float):
        self._slices.append(len(self._slices))
        if self._slices[-1] in self._dies_at:
            raise RoleDied("killed by the test")
        return Slice(self._engine.step(), 1, 0.0)  # a short slice, so that a death finds work half done


def mortal(folder, *deaths: tuple[int, ...], max_restarts: int = 3) -> EnginePool:
    """Engines that die at the given slices. In their place come some that wait for weights."""
    handles = []
    for i, dies_at in enumerate(deaths):
        slices: list[int] = []
        build = partial(Mortal, dies_at=list(dies_at), slices=slices)
        again = partial(build, spec(folder, version=None))
        handles.append(LocalHandle(f"policy[{i}]", build(spec(folder)), again))
    return EnginePool({"policy": handles}, Deadlines(rollout=5.0), max_restarts)


@pytest.fixture(autouse=True)
def rests_are_short(monkeypatch):
    monkeypatch.setattr(backoff, "FIRST_REST_SECONDS", 0.01)


@pytest.fixture(scope="module")
def trained(folder):
    return tiny_models.scramble(tiny_models.load(folder), seed=5)


@pytest.fixture(scope="module")
def undisturbed(folder, trained):
    subject = mortal(folder, ())
    subject.publish("policy", published(trained, 4))
    return tokens_of(subject)


def tokens_of(subject: EnginePool) -> dict[str, list]:
    """What is said to six prompts, with the version that said it."""
    subject.submit("policy", [request(i, prompt_length=4 + i) for i in range(6)])
    found = drain(subject)
    return {g: [(t.response_tokens.tolist(), t.versions) for t in group] for g, group in found.items()}


@pytest.mark.parametrize("deaths", [((), (2,)), ((0,), ()), ((3,), (2,)), ((2, 9),)], ids=str)
def test_lost_engines_are_replaced_and_nothing_is_lost(folder, trained, undisturbed, deaths, caplog):
    subject = mortal(folder, *deaths)
    subject.publish("policy", published(trained, 4))
    assert tokens_of(subject) == undisturbed
    while not all(seat.serves for seat in subject._seats["policy"]):
        subject._look(0.0)
    assert all(seat.handle._role.health().version == 4 for seat in subject._seats["policy"])
    said = [record.message for record in caplog.records]
    assert sum("is lost: killed by the test" in line for line in said) == sum(map(len, deaths))
    assert sum("serves again" in line for line in said) == sum(map(len, deaths))


def test_what_takes_an_engine_s_place_has_the_newest_weights_and_proves_it(folder, trained):
    subject = mortal(folder, (), (0,))
    subject.publish("policy", published(tiny_models.load(folder), 4))
    subject.submit("policy", [request(i) for i in range(2)])
    while all(seat.serves for seat in subject._seats["policy"]):
        subject._look(0.0)
    # The trainer goes on while the new process starts.
    assert subject.publish("policy", published(trained, 5)).keys() == {"policy[0]"}
    while not all(seat.serves for seat in subject._seats["policy"]):
        subject._look(0.0)
    new = subject._seats["policy"][1]
    assert new.handle._role.health().version == 5 and new.delivered.found.largest_difference < 1e-5


def test_one_that_takes_the_place_and_answers_wrongly_stops_the_run(folder, trained, monkeypatch):
    subject = mortal(folder, (1,))
    subject.publish("policy", published(trained, 4))
    monkeypatch.setattr(TransformersEngine, "_load", lambda self, payload: None)
    with pytest.raises(WeightSyncError, match=r"policy\[0\], weight version 4"):
        tokens_of(subject)


def test_an_engine_lost_while_it_is_published_to_is_replaced(folder, trained, undisturbed):
    subject = mortal(folder, ())
    [only] = subject._seats["policy"]
    monkey = only.handle._role

    def dies(version, payload):
        raise DeadlineExceeded("hangs by design")

    monkey.publish = dies
    [delivered] = subject.publish("policy", published(trained, 4)).values()
    assert delivered.found.largest_difference < 1e-5 and only.handle._role is not monkey
    assert tokens_of(subject) == undisturbed


def test_losses_in_a_row_end_with_the_fault_that_recurs(folder, trained):
    subject = mortal(folder, (0, 1, 2), max_restarts=2)
    subject.publish("policy", published(trained, 4))
    said = r"policy\[0\] was lost 3 times without .* rollout.max_restarts is 2. The last fault: killed by the test"
    with pytest.raises(GivenUp, match=said):
        tokens_of(subject)


def test_a_start_that_is_late_is_one_loss_more(folder, trained, monkeypatch):
    subject, starts = mortal(folder, (0,), max_restarts=2), []
    subject.publish("policy", published(trained, 4))

    def is_late():
        raise NotStarted("policy[0] did not finish building RolloutWorker", "policy[0]")

    monkeypatch.setattr(subject._seats["policy"][0].handle, "_again", lambda: starts.append(None) or is_late())
    with pytest.raises(GivenUp, match=r"policy\[0\] was lost 3 times .* did not finish building RolloutWorker"):
        tokens_of(subject)
    assert len(starts) == 2


def test_a_group_that_takes_every_engine_with_it_is_named(folder, trained, monkeypatch):
    subject = mortal(folder, (), (), (), max_restarts=1)
    subject.publish("policy", published(trained, 4))
    advance = Mortal.advance

    def dies_of_poison(self, seconds):
        if self._poisoned:
            raise RoleDied("killed by the test")
        return advance(self, seconds)

    def submit(self, requests):
        self._poisoned = any(r.group_id == "g1" for r in requests)
        RolloutWorker.submit(self, requests)

    monkeypatch.setattr(Mortal, "advance", dies_of_poison)
    monkeypatch.setattr(Mortal, "submit", submit)
    with pytest.raises(GivenUp, match="2 engines were lost while they had the group g1;"):
        tokens_of(subject)


class Mute(LocalPending):
    """A call of a process that gives no sign of life."""

    def __init__(self, who):
        def silent():
            raise Silent(f"{who} gave no sign of life", who)

        super().__init__(silent, (), {})


def test_a_process_without_a_sign_of_life_is_replaced(folder, trained, undisturbed, monkeypatch):
    subject = mortal(folder, (), ())
    subject.publish("policy", published(trained, 4))
    hung = subject._seats["policy"][1].handle
    before, call = hung._role, hung.call

    def stuck(within, method, *arguments):
        hangs = hung._role is before and method is RolloutWorker.advance
        return Mute(hung.name) if hangs else call(within, method, *arguments)

    monkeypatch.setattr(hung, "call", stuck)
    assert tokens_of(subject) == undisturbed
    assert hung._role is not before


def test_a_revival_that_fails_of_the_trainer_begins_anew_and_what_others_finished_is_kept(folder, trained, undisturbed):
    subject = mortal(folder, (), (0,))
    first = published(tiny_models.load(folder), 3)
    subject.publish("policy", first)

    def dead():
        raise RoleDied("the trainer is gone", "trainer[0]")

    subject._published["policy"] = dataclasses.replace(first, sent=LocalPending(dead, (), {}))
    subject.submit("policy", [request(i) for i in range(4)])
    with pytest.raises(RoleDied, match="the trainer is gone"):
        while True:
            subject._look(0.0)
    subject.abort(list(subject.asked()))
    assert subject.outstanding == 0 and subject.finished(0.0) == []
    # The trainer is back.
    subject.publish("policy", published(trained, 4))
    assert tokens_of(subject) == undisturbed
    while not all(s.serves for s in subject._seats["policy"]):
        subject._look(0.0)
    assert subject._seats["policy"][1].delivered.found.largest_difference < 1e-5


class Stuck:
    """A call that does not come to an end."""

    def result(self):
        raise DeadlineExceeded("it did not come")

    @classmethod
    def ready(cls, pendings, seconds):
        return []

    def seconds_left(self):
        return 0.0


def test_a_call_that_outlives_its_deadline_is_a_lost_engine(folder, trained, undisturbed, monkeypatch):
    subject = mortal(folder, (), ())
    subject.publish("policy", published(trained, 4))
    hung = subject._seats["policy"][1]
    call, before = hung.handle.call, hung.handle._role

    def stuck(within, method, *arguments):
        there = hung.handle._role is before and method.__name__ == "advance"
        return Stuck() if there else call(within, method, *arguments)

    monkeypatch.setattr(hung.handle, "call", stuck)
    assert tokens_of(subject) == undisturbed
    assert hung.handle._role is not before


@pytest.fixture
def nodes(monkeypatch):
    """Engines in `lost` have no place on the cluster; each look at the cluster comes at once."""
    monkeypatch.setattr(revival, "SECONDS_PER_LOOK", 0.0)
    lost: set[str] = set()
    monkeypatch.setattr(LocalHandle, "lacking", lambda handle: "room for CPU 1." * (handle.name in lost))
    return lost


def test_an_engine_without_a_place_waits_and_is_used_when_a_node_joins(folder, trained, undisturbed, nodes, caplog):
    subject = mortal(folder, (), (0,), max_restarts=1)
    subject.publish("policy", published(trained, 4))
    nodes.add("policy[1]")
    assert tokens_of(subject) == undisturbed
    waiting = subject._seats["policy"][1]
    for _ in range(100):
        subject._look(0.0)
    assert not waiting.serves and waiting.losses == 1, "waiting is no failed restart"
    nodes.clear()
    while not waiting.serves:
        subject._look(0.0)
    assert waiting.handle._role.health().version == 4
    said = [r.message for r in caplog.records if "waits for" in r.message]
    assert said == ["policy[1] waits for room for CPU 1. It is started when a node joins."], "told once"


def test_a_node_that_is_lost_while_an_engine_starts_there_is_no_failed_start(folder, trained, undisturbed, nodes):
    subject = mortal(folder, (), (), max_restarts=1)
    subject.publish("policy", published(trained, 4))
    again = subject._seats["policy"][1]
    subject._lose(again, RoleDied("killed by the test"))
    while again.revival.pending is None:
        subject._look(0.0)
    nodes.add("policy[1]")
    subject._look(0.0)
    assert again.revival.pending is None, "what was begun on the lost node is not waited for"
    nodes.clear()
    while not again.serves:
        subject._look(0.0)
    assert again.losses == 1
    assert tokens_of(subject) == undisturbed


def test_an_engine_that_is_started_on_a_node_that_is_gone_already_is_started_on_another(
    folder, trained, undisturbed, nodes, monkeypatch
):
    subject = mortal(folder, (), (), max_restarts=1)
    subject.publish("policy", published(trained, 4))
    again = subject._seats["policy"][1]
    start, gone = again.handle._again, ["the node that Ray does not know yet to be gone"]

    def dies_at_first():
        if gone:
            gone.pop()
            raise RoleDied("its node has died", "policy[1]")
        return start()

    monkeypatch.setattr(again.handle, "_again", dies_at_first)
    monkeypatch.setattr(LocalHandle, "moved", lambda handle: True)
    subject._lose(again, RoleDied("killed by the test"))
    assert tokens_of(subject) == undisturbed
    while not again.serves:
        subject._look(0.0)
    assert again.losses == 1 and not gone


def unbegun(folder, name: str) -> LocalHandle:
    """An engine that the cluster had no room for when the run began."""
    again = partial(RolloutWorker, spec(folder, version=None))
    handle = LocalHandle(name, None, again)
    handle.begun = False
    return handle


def test_an_engine_that_had_no_room_at_the_start_joins_while_the_run_goes_on(
    folder, trained, undisturbed, nodes, caplog
):
    handles = [LocalHandle("policy[0]", RolloutWorker(spec(folder))), unbegun(folder, "policy[1]")]
    nodes.add("policy[1]")
    subject = EnginePool({"policy": handles}, Deadlines(rollout=5.0), max_restarts=0)
    assert subject.publish("policy", published(trained, 4)).keys() == {"policy[0]"}
    assert tokens_of(subject) == undisturbed
    assert subject.worked("policy").keys() == {"policy[0]"}
    nodes.clear()
    late = subject._seats["policy"][1]
    assert subject.serving("policy") == [handles[0]]
    while not late.serves:
        subject._look(0.0)
    assert subject.serving("policy") == handles
    assert late.handle._role.health().version == 4 and late.delivered.found.largest_difference < 1e-5
    assert tokens_of(subject) == undisturbed
    assert all(worked.tokens > 0 for worked in subject.worked("policy").values()), "both have had something to do"
    said = [r.message for r in caplog.records]
    assert said[0] == "policy[1] waits for room for CPU 1. It is started when a node joins."
    assert said[1].startswith("policy[1] serves now, too, after") and len(said) == 2


def test_what_engines_did_is_counted_and_what_they_have_to_do_goes_down_to_nothing(folder):
    subject = pool(folder, 2)
    requests = [request(i, samples=2, prompt_length=9, max_new_tokens=12) for i in range(4)]
    subject.submit("policy", requests)
    groups = drain(subject)
    responses = [t for group in groups.values() for t in group]
    worked = subject.worked("policy")
    assert sum(each.tokens for each in worked.values()) == sum(len(t.response_tokens) for t in responses)
    # Two groups each: prompts of 9 tokens and two responses of 12 at most, as none has been seen.
    assert [each.most_outstanding for each in worked.values()] == [66, 66]
    assert all(each.steps >= 12 and each.seconds > 0 for each in worked.values())
    assert [seat.tokens for seat in subject._seats["policy"]] == [0, 0]
    assert subject.worked("policy")["policy[0]"].tokens == 0, "counted once"
    subject.submit("policy", [request(9), request(10)])
    subject.abort(["g9", "g10"])
    assert [seat.tokens for seat in subject._seats["policy"]] == [0, 0]


def test_who_serves_is_waited_for_and_has_what_was_published(folder, trained):
    subject = mortal(folder, (), (), max_restarts=1)
    subject.publish("policy", published(trained, 4))
    for seat in subject._seats["policy"]:
        subject._lose(seat, RoleDied("killed by the test"))
    first = subject.serving("policy")
    assert first and all(handle._role.health().version == 4 for handle in first)


def test_when_no_engine_has_a_place_the_run_ends_after_its_deadline(folder, trained, nodes):
    subject = mortal(folder, (0,), (0,))
    subject._deadlines = Deadlines(placement=0.2)
    subject.publish("policy", published(trained, 4))
    nodes |= {"policy[0]", "policy[1]"}
    began = time.monotonic()
    with pytest.raises(PlacementError, match=r"(?s)within 0.2 s \(deadlines.placement\).*policy\[1\] waits for room"):
        tokens_of(subject)
    assert 0.2 <= time.monotonic() - began < 5.0
