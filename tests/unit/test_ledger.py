"""The ledger's rules: one answer per lease, cursor order, nothing trained twice or lost."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_groups import CyclingCursor, answer

from rlpipe.data.flow import Failure, Score
from rlpipe.data.storage import Storage
from rlpipe.ledger.book import Appended, LedgerError
from rlpipe.ledger.ledger import Ledger
from rlpipe.ledger.manifests import Replaced
from rlpipe.observe import rollouts

STORED, DUPLICATE, REFUSED = ([verdict] for verdict in Appended)
NOTHING = {"pending": 0, "leased": 0, "completed": 0, "trained": 0, "failed": 0, "dropped": 0}


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["disk", "objects"])
def storage(request, tmp_path):
    return Storage(tmp_path / "run" if request.param == "disk" else f"memory://{tmp_path}")


@pytest.fixture
def ledger(storage, clock):
    with opened(storage, clock) as ledger:
        yield ledger


def opened(storage, clock):
    return Ledger(storage, CyclingCursor(), ["right"], lease_seconds=10.0, clock=clock)


def test_leases_follow_the_cursor_and_name_prompt_epoch_and_deadline(ledger):
    leases = ledger.lease(4)
    assert [(lease.lease_id, lease.prompt.prompt_id, lease.epoch, lease.deadline) for lease in leases] == [
        ("e0/p0", "p0", 0, 110.0),
        ("e0/p1", "p1", 0, 110.0),
        ("e0/p2", "p2", 0, 110.0),
        ("e1/p0", "p0", 1, 110.0),
    ]


def test_what_is_leased_or_answered_is_not_leased_again(ledger):
    first, second = ledger.lease(2)
    assert ledger.lease(2) == []
    ledger.append([answer(first)])
    assert [lease.lease_id for lease in ledger.lease(3)] == ["e0/p2"]
    ledger.append([answer(second)])
    ledger.take(2)
    assert [lease.lease_id for lease in ledger.lease(2)] == ["e1/p0"], "e0/p2 is the first that is not taken"


def test_groups_are_taken_in_cursor_order_however_they_finish(ledger):
    first, second, third = ledger.lease(3)
    assert ledger.append([answer(third)]) == STORED
    assert ledger.append([answer(second)]) == STORED
    assert ledger.take(2) is None
    assert ledger.append([answer(first)]) == STORED
    assert [group.group_id for group in ledger.take(2)] == ["e0/p0", "e0/p1"]
    ledger.commit(step=1)
    assert [group.group_id for group in ledger.take(1)] == ["e0/p2"]


def test_counts_follow_a_group_through_its_states(ledger):
    lease, _ = ledger.lease(2)
    assert ledger.counts() == NOTHING | {"leased": 2}
    ledger.append([answer(lease)])
    assert ledger.counts() == NOTHING | {"leased": 1, "completed": 1}
    ledger.take(1)
    assert ledger.counts() == NOTHING | {"leased": 1, "completed": 1}
    ledger.commit(step=1)
    assert ledger.counts() == NOTHING | {"leased": 1, "trained": 1}


def test_a_second_copy_is_dropped_and_the_first_is_trained(ledger):
    first, second = ledger.lease(2)
    ledger.append([answer(first, "first")])
    assert ledger.append([answer(first, "again")]) == DUPLICATE
    assert ledger.append([answer(second, "a"), answer(second, "b")]) == STORED + DUPLICATE
    assert [group.completions for group in ledger.take(2)] == [("first",), ("a",)]


def test_a_group_without_a_live_lease_is_refused(ledger):
    (lease,) = ledger.lease(1)
    assert ledger.append([replace(answer(lease), group_id="e9/p0")]) == REFUSED
    ledger.append([answer(lease)])
    ledger.take(1)
    ledger.commit(step=1)
    assert ledger.append([answer(lease)]) == REFUSED
    assert ledger.counts()["trained"] == 1


def test_an_expired_lease_is_refused_and_its_prompt_leased_again_in_its_place(ledger, clock):
    late, other_late = ledger.lease(2)
    clock.now = 110.0
    assert ledger.append([answer(late)]) == REFUSED
    assert ledger.counts() == NOTHING | {"pending": 2}
    again, other, fresh = ledger.lease(3)
    assert [again.lease_id, other.lease_id, fresh.lease_id] == ["e0r1/p0", "e0r1/p1", "e0/p2"]
    assert ledger.append([answer(late)]) == REFUSED
    assert ledger.append([answer(fresh), answer(other_late), answer(other), answer(again)]) == [
        *STORED, *REFUSED, *STORED, *STORED,
    ]  # fmt: skip
    assert [group.prompt.prompt_id for group in ledger.take(3)] == ["p0", "p1", "p2"]


def test_a_lease_that_is_worked_on_begins_anew_and_one_that_nobody_has_can_be_leased_again(ledger, clock):
    worked_on, left, late = ledger.lease(3)
    clock.now = 109.0
    ledger.hold([worked_on.lease_id, late.lease_id, "a stranger"])
    assert [lease.lease_id for lease in ledger.lease(3)] == ["e0r1/p1"], "nobody has e0/p1"
    clock.now = 120.0
    assert ledger.append([answer(late)]) == REFUSED, "it has run out"
    ledger.hold([worked_on.lease_id, late.lease_id])
    assert ledger.append([answer(worked_on), answer(left), answer(late)]) == [*STORED, *REFUSED, *STORED]


def test_all_answers_are_asked_again(ledger):
    first, second, third = ledger.lease(3)
    ledger.append([answer(first), answer(third)])
    ledger.take(1)
    ledger.ask_all_again()
    assert ledger.append([answer(second)]) == STORED
    assert [lease.lease_id for lease in ledger.lease(2)] == ["e0r1/p2"], "what is taken is not asked again"


def test_what_is_given_back_is_taken_again(ledger):
    first, second, third = ledger.lease(3)
    ledger.append([answer(first), answer(second)])
    ledger.take(2)
    ledger.drop([first.lease_id], "flat")
    assert ledger.taken == 1
    ledger.give_back()
    assert ledger.taken == 0
    assert ledger.lease(3) == [], "the third is still being answered"
    assert ledger.lacking(3) == {third.lease_id} and ledger.lacking(2) == set()
    ledger.append([answer(third)])
    assert [group.group_id for group in ledger.take(3)] == [lease.lease_id for lease in (first, second, third)]


def test_an_answer_in_time_stays_however_late_it_is_taken(ledger, clock):
    (lease,) = ledger.lease(1)
    ledger.append([answer(lease)])
    clock.now = 1000.0
    assert ledger.take(1)[0].group_id == "e0/p0"


def test_take_and_commit_alternate_and_steps_follow_one_another(ledger):
    (lease,) = ledger.lease(1)
    with pytest.raises(LedgerError, match="nothing is taken"):
        ledger.commit(step=1)
    ledger.append([answer(lease)])
    ledger.take(1)
    with pytest.raises(LedgerError, match="not committed"):
        ledger.take(1)
    with pytest.raises(LedgerError, match="step 2 commits, but step 0 was the last"):
        ledger.commit(step=2)


def test_what_is_dropped_makes_room_for_as_many_others_and_is_never_handed_out_again(ledger):
    leases = ledger.lease(3)
    ledger.append([answer(lease) for lease in leases])
    ledger.take(3)
    ledger.drop(["e0/p0", "e0/p2"], "no signal")
    assert ledger.append([answer(leases[0])]) == REFUSED
    replacements = ledger.lease(2)
    assert [lease.lease_id for lease in replacements] == ["e1/p0", "e1/p1"]
    assert ledger.take(2) is None, "the replacements are not answered yet"
    with pytest.raises(LedgerError, match="1 groups are taken and not committed"):
        ledger.take(3)
    ledger.append([answer(lease) for lease in replacements])
    assert [group.group_id for group in ledger.take(2)] == ["e1/p0", "e1/p1"]
    assert ledger.counts() == NOTHING | {"completed": 3, "dropped": 2}
    ledger.commit(step=1)
    assert ledger.counts() == NOTHING | {"trained": 3, "dropped": 2}


def test_when_all_are_dropped_as_many_others_are_taken(ledger):
    ledger.append([answer(lease) for lease in ledger.lease(1)])
    ledger.take(1)
    ledger.drop(["e0/p0"], "no signal")
    with pytest.raises(LedgerError, match="not committed"):
        ledger.take(2)
    ledger.append([answer(lease) for lease in ledger.lease(1)])
    assert [group.group_id for group in ledger.take(1)] == ["e0/p1"]


def test_only_what_is_taken_can_be_dropped(ledger):
    (lease,) = ledger.lease(1)
    ledger.append([answer(lease)])
    with pytest.raises(LedgerError, match="e0/p0 is not taken"):
        ledger.drop(["e0/p0"], "no signal")


def test_a_step_records_what_became_of_each_group_and_why(ledger, storage):
    first, second, third, fourth = ledger.lease(4)
    broken = (Failure("deadline", "right: no answer"), Failure("deadline", "right: no answer"))
    half = (Failure("deadline", "right: no answer"), Score(1.0, {"right": 1.0}))
    ledger.append([answer(first, "a", "b"), answer(second, "a", "b", outcomes=broken)])
    ledger.append([answer(third, "a", "b"), answer(fourth, "a", "b", outcomes=half)])
    ledger.take(4)
    ledger.drop(["e0/p2"], "no signal: its rewards are all equal")
    ledger.commit(1, advantages=[0.5, -0.5, 0.0, 0.0, 0.25, -0.25])
    rows = [(r["group_id"], r["epoch"], r["advantage"], r["fate"], r["reason"]) for r in rollouts.read(storage, 1)]
    assert rows[::2] == [
        ("e0/p0", 0, 0.5, "trained", None),
        ("e0/p1", 0, 0.0, "failed", "no reward: right: no answer"),
        ("e1/p0", 1, 0.25, "trained", None),
        ("e0/p2", 0, 0.0, "dropped", "no signal: its rewards are all equal"),
    ]
    assert [row[2] for row in rows[1::2]] == [-0.5, 0.0, -0.25, 0.0]
    assert ledger.counts() == NOTHING | {"trained": 2, "failed": 1, "dropped": 1}
    assert [group.group_id for group in ledger.committed(1)[0]] == ["e0/p0", "e0/p1", "e1/p0"]


class TestOpenedAgain:
    """Without close(): as after a kill."""

    def test_it_stands_where_it_stood(self, ledger, storage, clock):
        leases = ledger.lease(5)
        ledger.append([answer(lease, "ab", "c") for lease in leases[:2]])
        ledger.append([answer(lease) for lease in leases[2:4]])
        ledger.take(3)
        ledger.commit(1)
        again = opened(storage, clock)
        assert again.step == 1
        assert again.counts() == NOTHING | {"trained": 3, "completed": 1, "pending": 1}
        assert [lease.lease_id for lease in again.lease(3)] == ["e1r1/p1", "e1/p2"]
        assert [group.group_id for group in again.take(1)] == ["e1/p0"]
        assert [group.completions for group in again.committed(1)[0]] == [("ab", "c"), ("ab", "c"), ("x",)]

    def test_a_lease_of_before_is_refused(self, ledger, storage, clock):
        old, _ = ledger.lease(2)
        again = opened(storage, clock)
        assert again.append([answer(old)]) == REFUSED
        assert [lease.lease_id for lease in again.lease(2)] == ["e0r1/p0", "e0r1/p1"]
        assert again.append([answer(old)]) == REFUSED
        assert [lease.lease_id for lease in opened(storage, clock).lease(2)] == ["e0r2/p0", "e0r2/p1"]

    def test_what_is_to_be_asked_again_is(self, ledger, storage, clock):
        ledger.append([answer(lease) for lease in ledger.lease(2)])
        ledger.take(2)
        ledger.ask_again(["e0/p1"])
        again = opened(storage, clock)
        assert again.counts() == NOTHING | {"completed": 1, "pending": 1}
        [lease] = again.lease(2)
        assert lease.lease_id == "e0r1/p1"
        again.append([answer(lease)])
        assert [group.group_id for group in again.take(2)] == ["e0/p0", "e0r1/p1"]

    def test_what_was_taken_or_dropped_without_a_commit_is_taken_again(self, ledger, storage, clock):
        ledger.append([answer(lease) for lease in ledger.lease(2)])
        ledger.take(2)
        ledger.drop(["e0/p0"], "no signal")
        ledger.append([answer(lease) for lease in ledger.lease(1)])
        again = opened(storage, clock)
        assert again.lease(2) == []
        assert [group.group_id for group in again.take(2)] == ["e0/p0", "e0/p1"]
        again.drop(["e0/p0"], "no signal")
        assert [group.group_id for group in again.take(1)] == ["e0/p2"]
        again.commit(1)
        assert again.counts() == NOTHING | {"trained": 2, "dropped": 1}

    def test_a_second_copy_is_still_known(self, ledger, storage, clock):
        (lease,) = ledger.lease(1)
        ledger.append([answer(lease)])
        assert opened(storage, clock).append([answer(lease)]) == DUPLICATE

    def test_the_older_writer_is_replaced_and_what_it_acknowledged_is_kept(self, ledger, storage, clock):
        first, second = ledger.lease(2)
        ledger.append([answer(first)])
        again = opened(storage, clock)
        with pytest.raises(Replaced, match="another process"):
            ledger.append([answer(second)])
        with pytest.raises(Replaced):
            ledger.lease(3)
        assert again.counts() == NOTHING | {"completed": 1, "pending": 1}
        again.append([answer(lease) for lease in again.lease(2)])
        assert opened(storage, clock).counts() == NOTHING | {"completed": 2}

    def test_the_older_writer_cannot_write_a_step_over_the_newer_ones(self, ledger, storage, clock):
        ledger.append([answer(lease, "old") for lease in ledger.lease(1)])
        ledger.take(1)
        again = opened(storage, clock)
        again.take(1)
        again.commit(1, [0.75])
        with pytest.raises(Replaced):
            ledger.commit(1, [0.25])
        assert [row["advantage"] for row in rollouts.read(storage, 1)] == [0.75]

    def test_a_damaged_segment_is_answered_anew_and_said(self, ledger, storage, clock, caplog):
        first, second = ledger.lease(2)
        ledger.append([answer(first)])
        ledger.append([answer(second)])
        name = storage.names("ledger/segment-*")[0]
        storage.write(name, storage.read(name)[:-1] + b"!")
        again = opened(storage, clock)
        assert again.counts() == NOTHING | {"pending": 1, "completed": 1}
        assert [lease.lease_id for lease in again.lease(2)] == ["e0r1/p0"]
        assert "damaged" in caplog.text and "the 1 prompts answered there are asked again" in caplog.text

    def test_a_damaged_manifest_is_an_error_that_names_it(self, ledger, storage, clock):
        ledger.lease(2)
        (name,) = storage.names("ledger/manifest-*")
        whole = storage.read(name)
        for damaged in (b'{"format":1', whole.replace(b'"p1"', b'"p2"'), whole.replace(b'"checksum"', b'"checksun"')):
            storage.write(name, damaged)
            with pytest.raises(LedgerError, match=f"{name} is damaged"):
                opened(storage, clock)

    def test_a_manifest_of_another_format_is_not_guessed_at(self, ledger, storage, clock):
        (name,) = storage.names("ledger/manifest-*")
        storage.write(name, b'{"format": 99}')
        with pytest.raises(LedgerError, match="has format 99, and this rlpipe reads format 1"):
            opened(storage, clock)

    def test_a_damaged_step_is_noticed(self, ledger, storage):
        ledger.append([answer(lease) for lease in ledger.lease(1)])
        ledger.take(1)
        ledger.commit(1)
        name = "rollouts/step-000001.parquet"
        whole = storage.read(name)
        stored = pq.read_metadata(pa.BufferReader(whole)).row_group(0)
        for column in map(stored.column, range(stored.num_columns)):
            data = bytearray(whole)
            data[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1] ^= 1
            storage.write(name, bytes(data))
            with pytest.raises(LedgerError, match=f"what step 1 was trained on cannot be read: .*{name} is damaged"):
                ledger.committed(1)
        storage.delete(name)
        with pytest.raises(LedgerError, match=f"{name}.*restore the file"):
            ledger.committed(1)

    def test_a_step_that_it_does_not_know_is_missing(self, ledger):
        ledger.require(0, "the checkpoint x")
        with pytest.raises(LedgerError, match=r"x is of step 1, and .*ledger knows of 0 committed steps"):
            ledger.require(1, "the checkpoint x")


def test_contents_stand_once_and_a_finished_step_leaves_nothing_in_the_ledger(ledger, storage):
    for step in (1, 2, 3):
        for lease in ledger.lease(2):
            ledger.append([answer(lease)])
        assert len(storage.names("ledger/segment-*")) == 2
        ledger.take(2)
        ledger.commit(step)
    assert storage.names("ledger/segment-*") == []
    assert len(storage.names("ledger/manifest-*")) == 1
    assert rollouts.steps(storage) == [1, 2, 3]


def test_a_segment_stays_while_one_of_its_groups_waits(ledger, storage, clock):
    ledger.append([answer(lease, "ab") for lease in ledger.lease(3)])
    ledger.take(2)
    ledger.commit(1)
    assert len(storage.names("ledger/segment-*")) == 1
    again = opened(storage, clock)
    assert [group.completions for group in again.take(1)] == [("ab",)]
    again.commit(2)
    assert storage.names("ledger/segment-*") == []


SECOND_WRITER = """
import sys
sys.path.insert(0, {tests!r})
from sample_groups import CyclingCursor
from rlpipe.data.storage import Storage
from rlpipe.ledger.ledger import Ledger
Ledger(Storage({run!r}), CyclingCursor(), ["right"], 10.0)
print("opened")
"""


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path, clock):
    script = SECOND_WRITER.format(tests=str(Path(__file__).parent), run=str(tmp_path))
    attempt = lambda: subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)  # noqa: E731
    with opened(Storage(tmp_path), clock):
        refused = attempt()
    assert "InUse" in refused.stderr and "is in use: a process still works on this run" in refused.stderr
    assert attempt().stdout == "opened\n"
