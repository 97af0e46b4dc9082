"""All engines of a run, by the model they serve."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlpipe.data.flow import GroupRequest, Tokens, Trajectory
from rlpipe.recipe.run import Deadlines
from rlpipe.rollout.engine import Receipt
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.handle import DeadlineExceeded, Handle, Pending, Within, first_ready
from rlpipe.weights.payload import Payload

SLICE_SECONDS = 0.25
"""How long an engine generates before it hands over what is finished; new requests and weights wait that long."""

FinishedGroup = tuple[Trajectory, ...]
"""All responses to one request, by sample index."""


class EnginePool:
    """Spreads groups over the engines of each model and collects them whole.

    Every engine with work has one `advance` call under way at all times, so that it does not wait for the driver
    between slices. Which engine serves a group depends on load; what it answers does not.
    """

    def __init__(self, models: Mapping[str, Sequence[Handle[RolloutWorker]]], deadlines: Deadlines) -> None:
        self._seats = {model: [_Seat(handle) for handle in handles] for model, handles in models.items()}
        self._deadlines = deadlines

    @property
    def outstanding(self) -> int:
        """Groups submitted and not yet handed over."""
        return sum(len(seat.groups) for seat in self._all())

    def submit(self, model: str, requests: Sequence[GroupRequest]) -> None:
        """Give each group to the engine of `model` that has the fewest tokens to generate. Raises ValueError for a
        group id that is outstanding already."""
        outstanding = {group_id for seat in self._all() for group_id in seat.groups}
        if twice := outstanding & {request.group_id for request in requests}:
            raise ValueError(f"groups submitted twice: {', '.join(sorted(twice)[:3])}")
        seats = self._seats[model]
        loads = [seat.tokens for seat in seats]
        shares: list[list[_Group]] = [[] for _ in seats]
        for group in map(_Group, requests):
            chosen = loads.index(min(loads))
            loads[chosen] += group.tokens
            shares[chosen].append(group)
        for seat, share in zip(seats, shares, strict=True):
            if share:
                self._hand_over(seat, share)

    def finished(self, seconds: float) -> list[FinishedGroup]:
        """Groups of any model that are complete, waiting up to `seconds` for the first.

        Raises `DeadlineExceeded` naming the engine if a call of it, or any response from it, takes longer than
        deadlines.rollout; whatever else an engine raised is raised here.
        """
        until = time.monotonic() + seconds
        done: list[FinishedGroup] = []
        while not done and (busy := [seat for seat in self._all() if seat.advancing is not None]):
            ready = first_ready([seat.advancing for seat in busy], max(0.0, until - time.monotonic()))
            for seat in busy:
                if any(seat.advancing is pending for pending in ready):
                    done += self._harvest(seat)
            if time.monotonic() >= until:
                break
        return done

    def publish(self, model: str, version: int, payload: Payload | Pending[Payload]) -> dict[str, Receipt]:
        """Weights to every engine of `model` at once; receipts by engine name."""
        within = Within("publish", self._deadlines.publish)
        calls = {
            seat.handle.name: seat.handle.call(within, RolloutWorker.publish, version, payload)
            for seat in self._seats[model]
        }
        return {name: call.result() for name, call in calls.items()}

    def probe(self, model: str, sequences: list[Tokens]) -> dict[str, list[np.ndarray]]:
        """Every engine's log-probabilities of tokens 1.. of each sequence, by engine name."""
        within = Within("publish", self._deadlines.publish)
        calls = {
            seat.handle.name: seat.handle.call(within, RolloutWorker.probe, sequences) for seat in self._seats[model]
        }
        return {name: call.result() for name, call in calls.items()}

    def abort(self, group_ids: Sequence[str]) -> None:
        """Forget these groups; nothing of them is handed over later."""
        for seat in self._all():
            doomed = [group_id for group_id in group_ids if seat.groups.pop(group_id, None) is not None]
            if doomed:
                seat.submitted.append(seat.handle.call(self._rollout, RolloutWorker.abort, doomed))

    def _hand_over(self, seat: "_Seat", share: list["_Group"]) -> None:
        seat.groups |= {group.request.group_id: group for group in share}
        requests = [group.request for group in share]
        seat.submitted.append(seat.handle.call(self._rollout, RolloutWorker.submit, requests))
        self._keep_busy(seat)

    @property
    def _rollout(self) -> Within:
        return Within("rollout", self._deadlines.rollout)

    def _all(self) -> list["_Seat"]:
        return [seat for seats in self._seats.values() for seat in seats]

    def _keep_busy(self, seat: "_Seat") -> None:
        if seat.groups and seat.advancing is None:
            seat.advancing = seat.handle.call(self._rollout, RolloutWorker.advance, SLICE_SECONDS)

    def _harvest(self, seat: "_Seat") -> list[FinishedGroup]:
        """Take what the engine's last slice brought, and start the next one at once."""
        trajectories = seat.advancing.result()
        seat.advancing = None
        submitted, seat.submitted = seat.submitted, []
        self._keep_busy(seat)
        for call in submitted:  # calls run in order, so these came first; an error of theirs is raised here
            call.result()
        self._check_progress(seat, trajectories)
        # A group aborted meanwhile is not in `groups` any more.
        return [whole for t in trajectories if t.group_id in seat.groups and (whole := seat.take(t))]

    def _check_progress(self, seat: "_Seat", trajectories: list[Trajectory]) -> None:
        # Counted in the engine's own time: a driver that was busy elsewhere does not make an engine late.
        seat.barren_seconds = 0.0 if trajectories else seat.barren_seconds + SLICE_SECONDS
        if seat.groups and seat.barren_seconds > self._deadlines.rollout:
            raise DeadlineExceeded(
                f"{seat.handle.name} (rollout): generated for {seat.barren_seconds:.0f} s without finishing any of the "
                f"{len(seat.groups)} groups it has; deadlines.rollout is {self._deadlines.rollout:g} s. If responses "
                "are that long, raise deadlines.rollout; else look at the engine's log."
            )


@dataclass(slots=True)
class _Group:
    request: GroupRequest
    finished: list[Trajectory] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Most tokens still to come: the prompt is read once, each missing response may be as long as allowed."""
        missing = len(self.request.seeds) - len(self.finished)
        return len(self.request.prompt_tokens) + missing * self.request.sampling.max_new_tokens


@dataclass(slots=True)
class _Seat:
    """One engine, what it has to do, and the calls to it that are under way."""

    handle: Handle[RolloutWorker]
    groups: dict[str, _Group] = field(default_factory=dict)
    advancing: Pending[list[Trajectory]] | None = None
    submitted: list[Pending[None]] = field(default_factory=list)
    barren_seconds: float = 0.0

    @property
    def tokens(self) -> int:
        return sum(group.tokens for group in self.groups.values())

    def take(self, trajectory: Trajectory) -> FinishedGroup | None:
        """File a response; the whole group once it is the last one."""
        group = self.groups[trajectory.group_id]
        group.finished.append(trajectory)
        if len(group.finished) < len(group.request.seeds):
            return None
        del self.groups[trajectory.group_id]
        return tuple(sorted(group.finished, key=lambda t: t.sample_index))
