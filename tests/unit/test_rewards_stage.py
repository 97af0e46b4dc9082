"""The mix and the asynchronous stage."""

import math
import os
import threading
import time
from dataclasses import replace

import pytest
from sample_groups import make_group

from rlpipe.data.flow import Failure, Score
from rlpipe.recipe.rewards import RewardMix
from rlpipe.recipe.run import Deadlines
from rlpipe.rewards.mix import Mix, blamed
from rlpipe.rewards.reward import RewardUnusable
from rlpipe.rewards.stage import RewardFailed, RewardStage, build


class Fixed:
    """A reward with literal components."""

    def __init__(self, name, components, weight=1.0, seconds=0.0):
        self.name, self.weight, self.components, self.seconds = name, weight, components, seconds
        self.threads, self.count = set(), 0

    def start(self): ...
    def ready(self): ...
    def close(self): ...

    def score(self, group, allowance):
        self.threads.add(threading.current_thread())
        time.sleep(self.seconds)
        self.count += 1
        return self.components


def mix_of(*rewards):
    group = make_group(["x"] * len(rewards[0].components))
    return Mix(rewards).outcomes(group, {reward.name: reward.components for reward in rewards})


def test_weighted_sum_keeps_every_component_unweighted():
    outcomes = mix_of(Fixed("right", [1.0, 0.0], 2.0), Fixed("short", [0.5, 0.25], -1.0))
    assert outcomes == (
        Score(1.5, {"right": 1.0, "short": 0.5}),
        Score(-0.25, {"right": 0.0, "short": 0.25}),
    )


def test_a_component_that_does_not_apply_leaves_the_mix():
    assert mix_of(Fixed("a", [None], 2.0), Fixed("b", [0.5], 3.0)) == (Score(1.5, {"b": 0.5}),)


def test_nothing_applies():
    (outcome,) = mix_of(Fixed("a", [None]), Fixed("b", [None]))
    assert outcome == Failure("not_applicable", "a+b: no reward of the mix applies to this row")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_component_that_is_not_finite_fails_the_row(bad):
    outcomes = mix_of(Fixed("a", [1.0, bad]), Fixed("b", [1.0, 1.0]))
    assert outcomes[0] == Score(2.0, {"a": 1.0, "b": 1.0})
    assert outcomes[1] == Failure("not_a_number", f"a: the reward is {bad}")


def test_a_failed_component_fails_the_row_whatever_the_others_say():
    (outcome,) = mix_of(Fixed("a", [1.0]), Fixed("b", [Failure("deadline", "too late")]))
    assert outcome == Failure("deadline", "b: too late")
    assert blamed(outcome) == "b"


def drain(stage, groups):
    done = []
    while len(done) < groups:
        done += stage.finished(5.0)
    return done


def test_groups_come_back_scored_while_others_are_still_scored():
    reward = Fixed("a", [1.0, 0.0], seconds=0.5)
    with RewardStage(Mix([reward]), [4], seconds_per_group=5.0, max_failure_rate=0.1) as stage:
        begin = time.monotonic()
        for i in range(4):
            stage.submit(make_group(["x", "y"], group_id=f"g{i}"))
        assert stage.finished(0.0) == []
        assert stage.outstanding == 4
        done = drain(stage, 4)
        assert time.monotonic() - begin < 1.7
    assert {group.group_id for group in done} == {"g0", "g1", "g2", "g3"}
    assert all(group.outcomes == (Score(1.0, {"a": 1.0}), Score(0.0, {"a": 0.0})) for group in done)
    assert stage.outstanding == 0
    assert stage.finished(60.0) == []


def test_without_threads_scoring_happens_in_the_caller():
    reward = Fixed("a", [1.0])
    stage = RewardStage(Mix([reward]), [0], seconds_per_group=5.0, max_failure_rate=0.1)
    stage.submit(make_group(["x"]))
    assert stage.finished(0.0) == [] and reward.threads == set()
    (group,) = stage.finished(0.1)
    assert group.outcomes == (Score(1.0, {"a": 1.0}),)
    assert reward.threads == {threading.current_thread()}


class Batches:
    """A reward that takes up to `most` groups in a call, and holds a call up until `release` is set."""

    def __init__(self, most, name="all"):
        self.name, self.weight, self.most, self.calls = name, 1.0, most, []
        self.release = threading.Event()

    def start(self): ...
    def ready(self): ...
    def close(self): ...

    def takes(self, waiting):
        return min(self.most, len(waiting))

    def score_all(self, groups, allowance):
        self.calls.append([group.group_id for group in groups])
        assert self.release.wait(10)
        return [[float(len(text)) for text in group.completions] for group in groups]


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_groups_gather_while_a_call_is_under_way_and_nobody_waits_for_more():
    reward = Batches(most=3)
    with RewardStage(Mix([reward, Fixed("one", [1.0])]), [1, 1], seconds_per_group=5.0, max_failure_rate=0.1) as stage:
        stage.submit(make_group(["x"], group_id="g0"))
        wait_for(lambda: reward.calls)
        for i in range(1, 6):
            stage.submit(make_group(["x" * (i + 1)], group_id=f"g{i}"))
        assert stage.finished(0.01) == []
        reward.release.set()
        done = drain(stage, 6)
    assert reward.calls == [["g0"], ["g1", "g2", "g3"], ["g4", "g5"]]
    assert {g.group_id: g.outcomes for g in done} == {
        f"g{i}": (Score(i + 2.0, {"all": i + 1.0, "one": 1.0}),) for i in range(6)
    }


def test_without_threads_everything_that_waits_is_one_batch():
    reward = Batches(most=9)
    reward.release.set()
    stage = RewardStage(Mix([reward]), [0], seconds_per_group=5.0, max_failure_rate=0.1)
    for i in range(4):
        stage.submit(make_group(["x"], group_id=f"g{i}"))
    assert [group.group_id for group in stage.finished(0.1)] == ["g0", "g1", "g2", "g3"]
    assert reward.calls == [["g0", "g1", "g2", "g3"]]


def test_a_slow_reward_of_the_mix_does_not_hold_up_the_others():
    slow, quick = Batches(most=1, name="slow"), Fixed("quick", [1.0])
    with RewardStage(Mix([slow, quick]), [1, 1], seconds_per_group=5.0, max_failure_rate=0.1) as stage:
        for i in range(3):
            stage.submit(make_group(["x"], group_id=f"g{i}"))
        wait_for(lambda: quick.count == 3)
        assert len(slow.calls) == 1
        slow.release.set()
        assert len(drain(stage, 3)) == 3


def failed_groups(failures, responses):
    outcomes = (Failure("exception", "judge: rude.py:f: KeyError: 'tone'"),) * failures + (Score(1.0, {}),) * (
        responses - failures
    )
    return [replace(make_group([f"text {i}" for i in range(responses)]), outcomes=outcomes)]


def test_failures_within_the_limit_are_let_through():
    stage = RewardStage(Mix([]), [], 1.0, max_failure_rate=0.1)
    stage.check(failed_groups(1, 10), step=3)
    stage.check(failed_groups(0, 10), step=3)
    stage.check([], step=3)


def test_too_many_failures_stop_the_run_with_an_example():
    stage = RewardStage(Mix([]), [], 1.0, max_failure_rate=0.1)
    with pytest.raises(RewardFailed) as error:
        stage.check(failed_groups(2, 10), step=3)
    assert str(error.value) == "\n".join(
        [
            "the rewards of 2 of 10 responses (20.0%) could not be computed in step 3; "
            "rewards.max_failure_rate=0.1 allows 10.0%",
            "  2 x judge: exception",
            "  one of them:",
            "    prompt      '2+2='",
            "    completion  'text 0'",
            "    exception   judge: rude.py:f: KeyError: 'tone'",
            "Mend the reward or the data, or raise rewards.max_failure_rate. A failed reward is never counted as 0.",
        ]
    )


def recipe_mix(*rewards, **settings):
    return RewardMix.model_validate({"mix": list(rewards), **settings})


EXACT = {"kind": "exact", "name": "right"}


def test_a_recipe_becomes_a_stage(tmp_path):
    (tmp_path / "brief.py").write_text("def brief(completions, **_): return [-len(c) for c in completions]")
    python = {"kind": "python", "name": "brief", "function": "brief.py:brief", "weight": 0.1}
    with build(recipe_mix(EXACT, python), tmp_path, Deadlines(), debug=False) as stage:
        stage.ready()
        stage.submit(make_group(["42", "17 or so"], {"answer": "42"}))
        (group,) = drain(stage, 1)
    assert stage.names == ("right", "brief")
    assert group.outcomes == (
        Score(pytest.approx(0.8), {"right": 1.0, "brief": -2.0}),
        Score(pytest.approx(-0.8), {"right": 0.0, "brief": -8.0}),
    )


EVERY_KIND = [
    ({"kind": "exact"}, 1.0),
    ({"kind": "regex", "pattern": "^4"}, 1.0),
    ({"kind": "format"}, 0.0),
    ({"kind": "math"}, 1.0),
    ({"kind": "code", "isolation": "none"}, 0.0),
    ({"kind": "http", "url": "http://127.0.0.1:9", "deadline": 0.1}, "unreachable"),
]


@pytest.mark.parametrize(("kind", "expected"), EVERY_KIND, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("debug", [True, False])
def test_every_kind_reports_under_its_name(tmp_path, kind, expected, debug):
    with build(recipe_mix({**kind, "name": "mine", "weight": 2.0}), tmp_path, Deadlines(), debug) as stage:
        assert stage.names == ("mine",)
        stage.ready()
        stage.submit(make_group(["42"], {"answer": "42", "tests": "assert False"}))
        (outcome,) = drain(stage, 1)[0].outcomes
    if isinstance(expected, str):
        assert (outcome.kind, blamed(outcome)) == (expected, "mine")
    else:
        assert outcome == Score(2 * expected, {"mine": expected})


def test_debug_runs_the_function_in_this_process(tmp_path):
    (tmp_path / "where.py").write_text("import os\ndef pid(completions, **_): return [os.getpid()]")
    python = {"kind": "python", "name": "pid", "function": "where.py:pid"}
    with build(recipe_mix(python), tmp_path, Deadlines(), debug=True) as stage:
        stage.submit(make_group(["x"]))
        assert stage.finished(0.1)[0].outcomes[0].value == os.getpid()


def test_a_reward_that_cannot_be_loaded_raises_where_the_loop_waits(tmp_path):
    python = {"kind": "python", "name": "gone", "function": "gone.py:f"}
    with build(recipe_mix(python), tmp_path, Deadlines(), debug=False) as stage:
        stage.submit(make_group(["x"]))
        with pytest.raises(RewardUnusable, match=r"reward 'gone'.*no such file"):
            stage.finished(30.0)


def test_closing_ends_the_processes_at_once(tmp_path):
    (tmp_path / "slow.py").write_text("import time\ndef f(completions, **_): time.sleep(1000)")
    stage = build(
        recipe_mix({"kind": "python", "name": "slow", "function": "slow.py:f"}), tmp_path, Deadlines(), debug=False
    )
    stage.ready()
    stage.submit(make_group(["x"]))
    time.sleep(0.1)
    begin = time.monotonic()
    stage.close()
    assert time.monotonic() - begin < 20
    worker = stage._mix.rewards[0]._caller._all[0]
    assert worker._process.poll() is not None


class Breaks(Fixed):
    """Raises when it is first asked."""

    def score(self, group, allowance):
        if not self.count:
            self.count += 1
            raise RuntimeError("its process is gone")
        return super().score(group, allowance)


@pytest.mark.parametrize("threads", [0, 1])
def test_what_was_asked_before_a_reward_broke_is_not_heard_after_it_was_forgotten(threads):
    reward = Breaks("r", [1.0])
    with RewardStage(Mix([reward]), [threads], 9.0, 0.0) as stage:
        stage.submit(make_group(["x"], group_id="before"))
        stage.submit(make_group(["x"], group_id="beside"))
        with pytest.raises(RuntimeError, match="its process is gone"):
            stage.finished(5.0)
        stage.forget()
        assert stage.outstanding == 0
        stage.submit(make_group(["x"], group_id="after"))
        found = []
        while stage.outstanding:
            found += stage.finished(1.0)
        assert [group.group_id for group in found] == ["after"]
