"""What was asked is asked once, whatever is broken off or edited in between."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from sample_groups import answer

from rlpipe.data.flow import Failure, Prompt
from rlpipe.data.storage import Storage
from rlpipe.ledger.book import LedgerError
from rlpipe.pipelines.labelling.asking import settle
from rlpipe.pipelines.labelling.store import Store
from rlpipe.rewards.stage import RewardFailed

REWARDS = ["right"]


class Stopped(Exception):
    pass


class Answering:
    """Answers with the prompt's own id, in another order than asked; may stop after so many, or fail on some."""

    def __init__(self, stop_after=10**9, failing=()):
        self.asked, self.left, self.failing = [], stop_after, set(failing)
        self.waiting, self.checked = [], 0

    @contextmanager
    def __call__(self):
        yield self

    def ask(self, leases):
        self.waiting += leases

    def answered(self, seconds):
        now, self.waiting = self.waiting[::-1][:3], self.waiting[::-1][3:][::-1]
        return [self._answer(lease) for lease in now]

    def in_hand(self):
        return {lease.lease_id for lease in self.waiting}

    def check(self, groups, step):
        self.checked += len(groups)

    def _answer(self, lease):
        if not self.left:
            raise Stopped
        self.left -= 1
        self.asked.append(lease.prompt.prompt_id)
        failed = lease.prompt.prompt_id in self.failing
        return answer(lease, lease.prompt.prompt_id, outcomes=(Failure("x", "no"),) if failed else None)


def prompts(*names):
    return [Prompt(name, np.array([1], np.int32), name) for name in names]


def run(folder, asked, answering):
    store = Store(Storage(folder), "judged", REWARDS, 60.0)
    told = []
    found = settle(store, asked, answering, 4, lambda groups, done, total: told.append((done, total)))
    return {name: group.completions[0] for name, group in found.items()}, told


ALL = prompts(*(f"p{i:02}" for i in range(10)))
IDS = [prompt.prompt_id for prompt in ALL]


def test_all_are_asked_once_and_told_of_by_commit(tmp_path):
    answering = Answering()
    found, told = run(tmp_path, ALL, answering)
    assert found == {name: name for name in IDS}
    assert sorted(answering.asked) == IDS and answering.checked == 10
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_nobody_is_started_where_all_is_there(tmp_path):
    run(tmp_path, ALL, Answering())
    found, told = run(tmp_path, ALL, None)
    assert found == {name: name for name in IDS} and told == []


@pytest.mark.parametrize("after", range(10))
def test_what_was_broken_off_goes_on_and_what_was_committed_is_asked_no_more(tmp_path, after):
    first, second = Answering(stop_after=after), Answering()
    with pytest.raises(Stopped):
        run(tmp_path, ALL, first)
    found, _ = run(tmp_path, ALL, second)
    assert found == {name: name for name in IDS}
    assert set(first.asked) | set(second.asked) == set(IDS)
    assert len(second.asked) == len(set(second.asked))
    done = len(IDS) - len(second.asked)
    assert done >= after - after % 3, "what engines had handed over is durable"


def test_an_edit_asks_what_it_concerns_and_forgets_nothing(tmp_path):
    run(tmp_path, ALL, Answering())
    edited = [*ALL[:7], *prompts("q0", "q1")]
    answering = Answering()
    found, _ = run(tmp_path, edited, answering)
    assert sorted(answering.asked) == ["q0", "q1"]
    assert list(found) and set(found) == {*IDS[:7], "q0", "q1"}
    found, _ = run(tmp_path, ALL, None)
    assert set(found) == set(IDS), "undone, it asks nobody"


def test_an_edit_in_the_middle_leaves_what_nobody_wants_any_more(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, ALL, Answering(stop_after=6))
    answering = Answering()
    found, _ = run(tmp_path, [*ALL[:2], *prompts("q0")], answering)
    assert set(found) == {*IDS[:2], "q0"} and "q0" in answering.asked
    assert not {*answering.asked} & {*IDS[3:]}


def test_what_failed_is_asked_again_by_the_next_run_and_not_before(tmp_path):
    answering = Answering(failing=["p03"])
    found, _ = run(tmp_path, ALL, answering)
    assert set(found) == {*IDS} - {"p03"} and answering.asked.count("p03") == 1
    again = Answering()
    found, _ = run(tmp_path, ALL, again)
    assert again.asked == ["p03"] and set(found) == set(IDS)


def test_where_too_much_fails_what_failed_is_asked_when_it_goes_on(tmp_path):
    class Strict(Answering):
        def check(self, groups, step):
            if any(isinstance(outcome, Failure) for group in groups for outcome in group.outcomes):
                raise RewardFailed("too many")

    with pytest.raises(RewardFailed):
        run(tmp_path, ALL, Strict(failing=["p01"]))
    mended = Strict()
    found, _ = run(tmp_path, ALL, mended)
    assert "p01" in mended.asked and set(found) == set(IDS)


def test_what_fails_again_stops_nothing(tmp_path):
    class Strict(Answering):
        def check(self, groups, step):
            failed = sum(isinstance(o, Failure) for group in groups for o in group.outcomes)
            if failed > 0.5 * len(groups):
                raise RewardFailed("too many")

    run(tmp_path, ALL, Strict(failing=["p03"]))
    for _ in range(2):
        again = Strict(failing=["p03"])
        found, _ = run(tmp_path, ALL, again)
        assert again.asked == ["p03"] and set(found) == set(IDS) - {"p03"}


def test_all_that_had_failed_is_asked_again_with_the_fault_mended(tmp_path):
    class Refused(Answering):
        def check(self, groups, step):
            raise RewardFailed("a wrong key")

    with pytest.raises(RewardFailed):
        run(tmp_path, ALL, Refused(failing=IDS))
    mended = Answering()
    found, _ = run(tmp_path, ALL, mended)
    assert sorted(mended.asked) == IDS and set(found) == set(IDS), "not a batch of old failures after the other"


def test_a_group_comes_back_as_it_was_handed_in(tmp_path):
    class Detailed(Answering):
        def _answer(self, lease):
            group = super()._answer(lease)
            return replace(group, outcomes=tuple(replace(o, details='{"right": {"a": 1}}') for o in group.outcomes))

    store = Store(Storage(tmp_path), "judged", REWARDS, 60.0)
    found = settle(store, ALL[:1], Detailed(), 4, lambda *_: None)
    [group] = found.values()
    assert group.outcomes[0].details == '{"right": {"a": 1}}' and group.outcomes[0].components == {"right": 3.0}


def test_a_call_that_takes_longer_than_a_lease_loses_nothing(tmp_path):
    now = [0.0]

    class Slow(Answering):
        def answered(self, seconds):
            now[0] += 100.0
            return super().answered(seconds)

    answering = Slow()
    store = Store(Storage(tmp_path), "judged", REWARDS, 60.0, lambda: now[0])
    found = settle(store, ALL, answering, 4, lambda *_: None)
    assert set(found) == set(IDS) and sorted(answering.asked) == IDS, "and nothing is asked twice"


def test_a_damaged_file_is_told_and_not_passed_over(tmp_path):
    run(tmp_path, ALL, Answering())
    file = tmp_path / "judged/pass-000001/rollouts/step-000002.parquet"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(LedgerError, match=r"step-000002.parquet is damaged.*asked again"):
        run(tmp_path, ALL, Answering())
