"""The ledger's rules: one answer per lease, cursor order, nothing trained twice or lost."""

from dataclasses import replace

import pytest
from sample_groups import make_group

from rlpipe.data.flow import Prompt
from rlpipe.ledger.ledger import Appended, LedgerError
from rlpipe.ledger.memory import MemoryLedger


class Cursor:
    """p0, p1, p2 over and over."""

    def __init__(self):
        self.drawn = 0

    def draw(self, count):
        numbers = range(self.drawn, self.drawn + count)
        self.drawn += count
        return [(n // 3, Prompt(f"p{n % 3}", None, "")) for n in numbers]


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(clock):
    return MemoryLedger(Cursor(), lease_seconds=10.0, clock=clock)


def answer(lease, text="x"):
    return replace(make_group([text], group_id=lease.lease_id), prompt=lease.prompt)


def test_leases_follow_the_cursor_and_name_prompt_epoch_and_deadline(ledger):
    leases = ledger.lease(4)
    assert [(lease.lease_id, lease.prompt.prompt_id, lease.epoch, lease.deadline) for lease in leases] == [
        ("e0/p0", "p0", 0, 110.0),
        ("e0/p1", "p1", 0, 110.0),
        ("e0/p2", "p2", 0, 110.0),
        ("e1/p0", "p0", 1, 110.0),
    ]


def test_groups_are_taken_in_cursor_order_however_they_finish(ledger):
    first, second, third = ledger.lease(3)
    assert ledger.append(answer(third)) is Appended.STORED
    assert ledger.append(answer(second)) is Appended.STORED
    assert ledger.take(2) is None
    assert ledger.append(answer(first)) is Appended.STORED
    assert [group.group_id for group in ledger.take(2)] == ["e0/p0", "e0/p1"]
    ledger.commit(step=1)
    assert [group.group_id for group in ledger.take(1)] == ["e0/p2"]


def test_counts_follow_a_group_through_its_states(ledger):
    lease, _ = ledger.lease(2)
    assert ledger.counts() == {"pending": 0, "leased": 2, "completed": 0, "trained": 0, "dropped": 0}
    ledger.append(answer(lease))
    assert ledger.counts() == {"pending": 0, "leased": 1, "completed": 1, "trained": 0, "dropped": 0}
    ledger.take(1)
    assert ledger.counts() == {"pending": 0, "leased": 1, "completed": 1, "trained": 0, "dropped": 0}
    ledger.commit(step=1)
    assert ledger.counts() == {"pending": 0, "leased": 1, "completed": 0, "trained": 1, "dropped": 0}


def test_a_second_copy_is_dropped_and_the_first_is_trained(ledger):
    (lease,) = ledger.lease(1)
    ledger.append(answer(lease, "first"))
    assert ledger.append(answer(lease, "second")) is Appended.DUPLICATE
    assert ledger.take(1)[0].completions == ("first",)


def test_a_group_without_a_live_lease_is_refused(ledger):
    (lease,) = ledger.lease(1)
    assert ledger.append(make_group(["x"], group_id="e9/p0")) is Appended.REFUSED
    ledger.append(answer(lease))
    ledger.take(1)
    ledger.commit(step=1)
    assert ledger.append(answer(lease)) is Appended.REFUSED
    assert ledger.counts()["trained"] == 1


def test_an_expired_lease_is_refused_and_its_prompt_leased_again_in_its_place(ledger, clock):
    late, _ = ledger.lease(2)
    clock.now = 110.0
    assert ledger.append(answer(late)) is Appended.REFUSED
    assert ledger.counts() == {"pending": 2, "leased": 0, "completed": 0, "trained": 0, "dropped": 0}
    again, other, fresh = ledger.lease(3)
    assert [again.lease_id, other.lease_id, fresh.lease_id] == ["e0r1/p0", "e0r1/p1", "e0/p2"]
    assert ledger.append(answer(late)) is Appended.REFUSED
    ledger.append(answer(fresh))
    ledger.append(answer(other))
    ledger.append(answer(again))
    assert [group.prompt.prompt_id for group in ledger.take(3)] == ["p0", "p1", "p2"]


def test_an_answer_in_time_stays_however_late_it_is_taken(ledger, clock):
    (lease,) = ledger.lease(1)
    ledger.append(answer(lease))
    clock.now = 1000.0
    assert ledger.take(1)[0].group_id == "e0/p0"


def test_take_and_commit_alternate(ledger):
    (lease,) = ledger.lease(1)
    with pytest.raises(LedgerError, match="nothing is taken"):
        ledger.commit(step=1)
    ledger.append(answer(lease))
    ledger.take(1)
    with pytest.raises(LedgerError, match="not committed"):
        ledger.take(1)


def test_what_is_dropped_makes_room_for_as_many_others_and_is_never_handed_out_again(ledger):
    leases = ledger.lease(3)
    for lease in leases:
        ledger.append(answer(lease))
    ledger.take(3)
    ledger.drop(["e0/p0", "e0/p2"], "no signal")
    assert ledger.append(answer(leases[0])) is Appended.REFUSED
    assert [lease.lease_id for lease in ledger.lease(2)] == ["e1/p0", "e1/p1"]
    assert ledger.take(2) is None, "the replacements are not answered yet"
    with pytest.raises(LedgerError, match="not committed"):
        ledger.take(3)
    for lease_id in ("e1/p0", "e1/p1"):
        ledger.append(make_group(["x"], group_id=lease_id))
    assert [group.group_id for group in ledger.take(2)] == ["e1/p0", "e1/p1"]
    ledger.commit(step=1)
    assert ledger.counts() == {"pending": 0, "leased": 0, "completed": 0, "trained": 3, "dropped": 2}


def test_only_what_is_taken_can_be_dropped(ledger):
    (lease,) = ledger.lease(1)
    ledger.append(answer(lease))
    with pytest.raises(LedgerError, match="e0/p0 is not taken"):
        ledger.drop(["e0/p0"], "no signal")
