"""How far ahead prompts are handed out, and that nothing grows older than the recipe allows."""

import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
from sample_groups import CyclingCursor, answer

from rlpipe.data.flow import Group, VersionSpan
from rlpipe.data.storage import Storage
from rlpipe.ledger.book import Lease
from rlpipe.ledger.ledger import Ledger
from rlpipe.observe import rollouts
from rlpipe.pipelines.online.admission import Admission
from rlpipe.pipelines.online.metrics import staleness_metrics
from rlpipe.recipe.algorithm import Schedule
from rlpipe.recipe.run import Run


def standing(step: int, taken: int = 0) -> SimpleNamespace:
    return SimpleNamespace(step=step, taken=taken)


class TestAhead:
    def test_on_policy_is_one_step(self):
        admission = Admission(Schedule(steps=10, prompts_per_step=4), Run())
        assert admission.ahead(standing(step=3)) == 4
        assert admission.ahead(standing(step=3, taken=4)) == 0, "while it trains nothing is handed out"
        assert admission.ahead(standing(step=3, taken=3)) == 1, "one was dropped"

    def test_two_versions_are_two_steps_more(self):
        admission = Admission(Schedule(steps=10, prompts_per_step=4), Run(max_staleness=2))
        assert admission.ahead(standing(step=0)) == 12
        assert admission.ahead(standing(step=0, taken=4)) == 8

    def test_nothing_is_sampled_that_no_step_is_left_for(self):
        admission = Admission(Schedule(steps=10, prompts_per_step=4), Run(max_staleness=2))
        assert [admission.ahead(standing(step)) for step in (7, 8, 9, 10)] == [12, 8, 4, 0]


class TestThrottle:
    @pytest.fixture
    def admission(self) -> Admission:
        return Admission(Schedule(steps=100, prompts_per_step=4), Run(max_staleness=2, min_effective_sample_size=0.5))

    @staticmethod
    def hear(admission: Admission, *effective: float) -> list[float]:
        """What was admitted in each of these steps."""
        said = [admission.hear([group(0)], {"mismatch/effective_samples": e}, step=1) for e in effective]
        return [each["staleness/admitted"] for each in said]

    def test_one_less_below_the_floor_one_more_above_it(self, admission, caplog):
        with caplog.at_level(logging.INFO):
            assert self.hear(admission, 0.4, 0.3, 0.2, 0.5, 0.9, 0.9) == [2, 1, 0, 0, 1, 2]
        assert "0.400 of the tokens, below run.min_effective_sample_size=0.5" in caplog.text
        assert "handed out 1 steps ahead, one less than before" in caplog.text
        assert "handed out 0 steps ahead, which is the least" in caplog.text
        assert admission.ahead(standing(step=3)) == 12

    def test_what_is_held_back(self, admission):
        self.hear(admission, 0.1)
        assert admission.ahead(standing(step=3)) == 8

    def test_a_step_that_says_nothing_changes_nothing(self, admission):
        admission.hear([group(0)], {"mismatch/effective_samples": 0.1}, step=1)
        for silent in ({}, {"mismatch/effective_samples": float("nan")}):
            assert admission.hear([group(0)], silent, step=1)["staleness/admitted"] == 1

    def test_it_is_in_the_state(self, admission):
        self.hear(admission, 0.1)
        again = Admission(Schedule(steps=100, prompts_per_step=4), Run(max_staleness=2))
        again.load(admission.state())
        assert again.ahead(standing(step=0)) == 8
        less = Admission(Schedule(steps=100, prompts_per_step=4), Run())
        less.load(admission.state())
        assert less.ahead(standing(step=0)) == 4

    def test_on_policy_there_is_nothing_to_tell(self):
        admission = Admission(Schedule(steps=1), Run())
        assert admission.hear([group(0)], {"mismatch/effective_samples": 0.0}, step=1) == {}


def group(*versions: int, length: int = 4, masked: int = 0) -> SimpleNamespace:
    """One response of `length` tokens, the versions taking equal parts of it, the last `masked` an environment's."""
    share = length // len(versions)
    spans = tuple(VersionSpan(i * share, version) for i, version in enumerate(versions))
    mask = np.array([1] * (length - masked) + [0] * masked)
    return SimpleNamespace(
        trajectories=[SimpleNamespace(versions=spans, response_tokens=np.zeros(length), response_mask=mask)]
    )


def test_staleness_counts_from_the_first_token():
    """Of the policy of version 4, which step 5 trains."""
    found = staleness_metrics([group(4), group(2, 3, 4, length=6), group(3, 4, masked=2), group(2)], step=5, most=3)
    assert found == {
        "staleness/mean": pytest.approx((0 + 2 + 1 + 2) / 4),
        "staleness/max": 2.0,
        "staleness/tokens": pytest.approx((4 * 0 + 2 * 2 + 2 * 1 + 2 * 0 + 2 * 1 + 4 * 2) / (4 + 6 + 2 + 4)),
        "staleness/share_0": 0.25,
        "staleness/share_1": 0.25,
        "staleness/share_2": 0.5,
        "staleness/share_3": 0.0,
    }
    assert staleness_metrics([group(4)], step=5, most=0) == {}


@pytest.mark.parametrize("most", [0, 1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_takes_how_long_all_is_trained_once_and_nothing_is_too_old(most, seed):
    """Answers come in a random order, some prompts take very long, some groups are dropped and replaced, and now and
    then the writer dies."""
    run = Simulated(most, seed)
    ages = [age for _ in range(run.schedule.steps) for age in run.step()]
    settled = run.settled()
    drawn = [(epoch, prompt.prompt_id) for epoch, prompt in CyclingCursor().draw(len(settled))]
    assert settled == drawn, "each prompt once, in cursor order"
    assert max(ages) == most, "the bound holds, and is made use of"


class Simulated:
    """The sampler's and the trainer's use of admission and ledger, with engines that answer in a random order."""

    def __init__(self, most: int, seed: int) -> None:
        self.schedule = Schedule(steps=30, prompts_per_step=3)
        self._admission = Admission(self.schedule, Run(max_staleness=most))
        self._chance, self._storage = random.Random(seed), Storage(f"memory://simulated-{most}-{seed}")
        self._leased_at: dict[str, int] = {}
        self._open()

    def step(self) -> list[int]:
        """How old each group of the step is that is trained, at its lease."""
        if self._chance.random() < 0.2:
            self.ledger.close()
            self._open()
        kept = self._gather(3)
        if self._chance.random() < 0.3:
            self.ledger.drop([kept[0].group_id], "flat")
            self._gather(1)
        ages = [self.ledger.step - self._leased_at[drawn.lease_id] for drawn in self.ledger._book.taken]
        self.ledger.commit(self.ledger.step + 1)
        return ages

    def settled(self) -> list[tuple[int, str]]:
        """Epoch and prompt of every group, step by step; within a step sorted, as dropped ones stand at its end."""
        steps = [rollouts.read(self._storage, step) for step in range(1, self.schedule.steps + 1)]
        return [pair for rows in steps for pair in sorted({(row["epoch"], row["prompt_id"]) for row in rows})]

    def _open(self) -> None:
        self.ledger = Ledger(self._storage, CyclingCursor(), ["right"], lease_seconds=1e9)
        self._unanswered: list[Lease] = []

    def _gather(self, count: int) -> list[Group]:
        leases = self.ledger.lease(self._admission.ahead(self.ledger))
        self._unanswered += leases
        self._leased_at |= {lease.lease_id: self.ledger.step for lease in leases}
        while (groups := self.ledger.take(count)) is None:
            slow = [lease for lease in self._unanswered if lease.prompt.prompt_id == "p0"]
            quick = [lease for lease in self._unanswered if lease not in slow]
            lease = self._chance.choice(quick if quick and (not slow or self._chance.random() < 0.95) else slow)
            self._unanswered.remove(lease)
            self.ledger.append([answer(lease)])
        return groups
