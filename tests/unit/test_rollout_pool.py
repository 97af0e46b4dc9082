"""The pool over several engines: whole groups, whichever engine serves them."""

import numpy as np
import pytest
import tiny_models
from tiny_models import END, request

from rlpipe.recipe.run import Deadlines
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.pool import EnginePool
from rlpipe.rollout.records import NotCurrent
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.handle import DeadlineExceeded
from rlpipe.runtime.local import LocalHandle, LocalPending
from rlpipe.weights.packing import pack


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.save_model(tmp_path_factory.mktemp("model"))


def spec(folder, **settings) -> EngineSpec:
    return EngineSpec("transformers", str(folder), "float32", (END,), **{"version": 0, **settings})


def pool(folder, engines: int, model: str = "policy", **settings) -> EnginePool:
    workers = [RolloutWorker(spec(folder, **settings)) for _ in range(engines)]
    handles = [LocalHandle(f"{model}[{i}]", worker) for i, worker in enumerate(workers)]
    return EnginePool({model: handles}, Deadlines(rollout=5.0))


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


def test_publish_and_probe_reach_every_engine(folder):
    subject = pool(folder, 2, version=None)
    weights = tiny_models.scramble(tiny_models.load(folder), seed=4)
    payload = pack(weights.named_parameters())
    receipts = subject.publish("policy", 6, LocalPending(lambda: payload, (), {}))
    assert {name: (r.version, r.digest) for name, r in receipts.items()} == {
        f"policy[{i}]": (6, payload.digest) for i in range(2)
    }
    answers = subject.probe("policy", [np.arange(5, dtype=np.int32)])
    expected = tiny_models.teacher_forced(weights, np.arange(1), np.arange(1, 5))
    for answer in answers.values():
        np.testing.assert_allclose(answer[0], expected, atol=1e-5)


def test_models_have_engines_of_their_own(folder, tmp_path):
    other = tiny_models.save_model(tmp_path, seed=9)
    handles = {
        name: [LocalHandle(f"{name}[0]", RolloutWorker(spec(path)))]
        for name, path in (("policy", folder), ("judge", other))
    }
    subject = EnginePool(handles, Deadlines())
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
        seat.handle._role.advance = lambda seconds: []
    subject.submit("policy", [request(0)])
    with pytest.raises(DeadlineExceeded, match=r"policy\[0\] \(rollout\): .* any of the 1 groups .* is 5 s"):
        while True:
            subject.finished(0.0)


def test_a_slice_ends_on_time_and_early_when_all_is_done(folder):
    worker = RolloutWorker(spec(folder))
    assert worker.advance(60.0) == []
    worker.submit([request(0, max_new_tokens=200)])
    assert worker.advance(0.0) == []
    assert worker.health().outstanding == 4
    assert len(worker.advance(60.0)) == 4
    assert worker.health().outstanding == 0
