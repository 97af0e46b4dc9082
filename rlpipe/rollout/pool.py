"""All engines of a run, by the model they serve."""

import logging
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any

from rlpipe.data.flow import GroupRequest
from rlpipe.recipe.run import Deadlines
from rlpipe.rollout.delivery import Deliverable, Delivered, put_to_sleep
from rlpipe.rollout.dispatch import Dispatch
from rlpipe.rollout.revival import Wanted, serving
from rlpipe.rollout.seat import AskedGroup, FinishedGroup, Seat
from rlpipe.rollout.speed import Worked
from rlpipe.rollout.worker import RolloutWorker, Slice
from rlpipe.runtime.handle import DeadlineExceeded, GivenUp, Handle, Pending, RoleDied, Within, first_ready
from rlpipe.runtime.revival import Revival, Steps
from rlpipe.runtime.roles import PlacementError

logger = logging.getLogger(__name__)

SLICE_SECONDS = 0.25
"""How long an engine generates before it hands over what is finished; new requests and weights wait that long."""

_Lost = (RoleDied, DeadlineExceeded)
"""What says that a process is gone or hangs. Any other error is the engine's word about what it was asked."""


class Barren(RuntimeError):
    """An engine that lives and generates finishes nothing; another process in its place would not, either."""


class EnginePool:
    """Spreads groups over the engines of each model and collects them whole.

    Every engine with work has one `advance` call under way at all times, so that it does not wait for the driver
    between slices. Which engine serves a group is `Dispatch`'s; what it answers does not depend on it.

    An engine that dies, hangs or gives no sign of life is replaced while the others go on: what it was asked goes to
    them, and the new process gets requests once it has the weights that they have, and has proven it. So does one that
    the cluster had no room for when the run began.
    """

    def __init__(
        self, models: Mapping[str, Sequence[Handle[RolloutWorker]]], deadlines: Deadlines, max_restarts: int
    ) -> None:
        """`max_restarts`: how often in a row an engine is replaced without having finished a group."""
        self._deadlines, self._max_restarts = deadlines, max_restarts
        self._seats = {model: [self._seat(model, handle) for handle in handles] for model, handles in models.items()}
        self._dispatch = {model: Dispatch() for model in models}
        self._published: dict[str, Deliverable] = {}
        self._withdrawn: set[str] = set()
        """Models whose weights are to be published anew before another engine of theirs may serve."""
        self._asleep: set[str] = set()
        """Models whose engines are to leave their GPUs alone until the next `publish`."""
        self._homeless: dict[str, list[AskedGroup]] = {model: [] for model in models}
        """Groups of engines that are lost, while none serves that could take them."""
        self._asked: set[str] = set()
        """Ids of groups submitted and not yet handed over. Kept, as it is looked at at every turn."""
        self._done: list[FinishedGroup] = []
        """To be handed over; here, since the next engine heard may have an error to raise."""

    @property
    def outstanding(self) -> int:
        """Groups submitted and not yet handed over."""
        return len(self._asked)

    def submit(self, model: str, requests: Sequence[GroupRequest]) -> None:
        """Give each group to an engine of `model`. Raises ValueError for a group id that is outstanding already."""
        ids = {request.group_id for request in requests}
        if twice := self._asked & ids:
            raise ValueError(f"groups submitted twice: {', '.join(sorted(twice)[:3])}")
        self._asked |= ids
        self._spread(model, self._dispatch[model].ask(requests))

    def finished(self, seconds: float, also: Sequence[Pending[Any]] = ()) -> list[FinishedGroup]:
        """Groups of any model that are complete, waiting up to `seconds` for the first, or until one of `also`, which
        are calls of other roles, is finished.

        Raises `GivenUp` if engines are lost again and again; `PlacementError` if no engine of a model has a place on
        the cluster for longer than deadlines.placement; `Barren` naming the engine if any response from it takes longer
        than deadlines.rollout; whatever else an engine raised is raised here.
        """
        until = time.monotonic() + seconds
        while not self._done and (self.outstanding or also):
            said = self._look(max(0.0, until - time.monotonic()), also)
            if said or time.monotonic() >= until:
                break
        done, self._done = self._done, []
        self._asked -= {group[0].group_id for group in done}
        return done

    def publish(self, model: str, publication: Deliverable) -> dict[str, Delivered]:
        """Weights to every engine of `model` at once, and the proof of each that serves them, by engine name. An engine
        that is lost on the way is replaced, and waited for only if no other serves. Raises `WeightSyncError`."""
        self._published[model] = publication
        self._withdrawn.discard(model)
        self._asleep.discard(model)
        seats = self._seats[model]
        try:
            for seat in seats:  # every engine has its call before one is waited for
                seat.deliver(publication)
            while any(seat.delivery for seat in seats) or not any(seat.delivered for seat in seats):
                self._look(SLICE_SECONDS)
        finally:  # of weights that a trainer which is lost was to send, nothing more is expected
            for seat in seats:
                seat.delivery = seat.delivering = None
        for seat in seats:  # those that slept go on with what they were asked
            self._keep_busy(seat)
        self._house(model)
        return {seat.handle.name: seat.delivered for seat in seats if seat.delivered}

    def withdraw(self, model: str) -> None:
        """Whoever published last is gone: an engine that starts waits for the next `publish`. Others go on."""
        self._withdrawn.add(model)

    def sleep(self, model: str) -> None:
        """The engines of `model` give back what they hold on their GPUs, and generate nothing until the next `publish`,
        after which they go on with what they were asked. One that is lost is not started before."""
        self._asleep.add(model)
        for seat in self._seats[model]:
            seat.begin(partial(put_to_sleep, within=self._publish))
        # One that starts has the GPU until it sleeps; one that rests, or has no place, has none.
        while any(s.delivery or (s.revival is not None and s.revival.pending) for s in self._seats[model]):
            self._look(SLICE_SECONDS)

    def sleeps(self, model: str) -> bool:
        """Whether its engines do."""
        return model in self._asleep

    def abort(self, group_ids: Sequence[str]) -> None:
        """Forget these groups; nothing of them is handed over later. Ids that are not outstanding are ignored."""
        ids = set(group_ids)
        self._asked -= ids
        self._done = [group for group in self._done if group[0].group_id not in ids]
        for groups in self._homeless.values():
            groups[:] = [group for group in groups if group.request.group_id not in ids]
        for seat in self._all():
            if doomed := [group_id for group_id in group_ids if seat.forget(group_id)]:
                seat.submitted.append(seat.handle.call(self._rollout, RolloutWorker.abort, doomed))

    def worked(self, model: str) -> dict[str, Worked]:
        """What each engine of `model` that serves did since this was asked last, by its name."""
        found = {}
        for seat in self._seats[model]:
            worked, seat.worked = seat.worked, Worked(most_outstanding=seat.tokens)
            if seat.serves:
                found[seat.handle.name] = worked
        return found

    def nodes(self, model: str) -> dict[str, str]:
        """The node that each engine of `model` was started on, by its name; empty where it was on none."""
        return {seat.handle.name: seat.handle.node for seat in self._seats[model]}

    def serving(self, model: str) -> list[Handle[RolloutWorker]]:
        """The engines of `model` that have what was published last, for calls of one's own; waits for the first. One
        that is being replaced is not among them: it may be there already, with other weights."""
        while not (found := [seat.handle for seat in self._seats[model] if seat.serves]):
            self._look(SLICE_SECONDS)
        return found

    def _spread(self, model: str, groups: Sequence[AskedGroup]) -> None:
        seats = [] if self.sleeps(model) else [seat for seat in self._seats[model] if seat.serves]
        if not seats:
            self._homeless[model] += groups
            return
        for seat, share in self._dispatch[model].assign(groups, seats).items():
            requests = [group.request for group in share]
            seat.submitted.append(seat.handle.call(self._rollout, RolloutWorker.submit, requests))
            self._keep_busy(seat)

    @property
    def _publish(self) -> Within:
        return Within("publish", self._deadlines.publish)

    @property
    def _rollout(self) -> Within:
        return Within("rollout", self._deadlines.rollout)

    def _all(self) -> list[Seat]:
        return [seat for seats in self._seats.values() for seat in seats]

    def asked(self) -> AbstractSet[str]:
        """The ids of groups submitted and not yet handed over; the set goes on changing."""
        return self._asked

    def _keep_busy(self, seat: Seat) -> None:
        if seat.groups and seat.advancing is None and seat.serves and not self.sleeps(seat.model):
            seat.advancing = seat.handle.call(self._rollout, RolloutWorker.advance, SLICE_SECONDS)

    def _look(self, seconds: float, also: Sequence[Pending[Any]] = ()) -> bool:
        """Wait for the first engine that has something to say, or the first of `also`, and hear all engines that have;
        whether one of `also` has."""
        waiting = [(pending, seat) for seat in self._all() for pending in seat.awaited]
        awaited = [*also, *(pending for pending, _ in waiting)]
        if not awaited:  # all that are lost rest before they are tried again
            time.sleep(min(seconds, SLICE_SECONDS))
        ready = {id(pending) for pending in first_ready(awaited, min(seconds, SLICE_SECONDS))}
        # A call that is overdue has something to say, too: that it is. And who starts again may rest, without a call.
        heard: dict[Seat, set[int]] = {seat: set() for seat in self._all() if seat.revival is not None}
        for pending, seat in waiting:
            if id(pending) in ready or pending.seconds_left() <= 0:
                heard.setdefault(seat, set()).add(id(pending))
        for seat, said in heard.items():
            try:
                self._hear(seat, said)
            except _Lost as fault:
                self._lose(seat, fault)
        return any(id(pending) in ready for pending in also)

    def _hear(self, seat: Seat, heard: set[int]) -> None:
        """What an engine has to say: its calls that are finished or overdue, by their ids."""
        if seat.revival is not None:
            self._revive(seat, bool(heard))
            return
        advancing, delivering = seat.advancing, seat.delivering
        if advancing is not None and id(advancing) in heard:
            self._done += self._harvest(seat)
        if delivering is not None and id(delivering) in heard:
            seat.go_on()

    def _harvest(self, seat: Seat) -> list[FinishedGroup]:
        """Take what the engine's last slice brought, and start the next one at once."""
        done = seat.advancing.result()
        seat.advancing = None
        submitted, seat.submitted = seat.submitted, []
        self._keep_busy(seat)
        for call in submitted:  # calls run in order, so these came first; an error of theirs is raised here
            call.result()
        self._check_progress(seat, done)
        expected = self._dispatch[seat.model].expected
        for trajectory in done.finished:
            expected.hear(trajectory)
            seat.worked.tokens += len(trajectory.response_tokens)
        # A group aborted meanwhile is not in `groups` any more.
        return [whole for t in done.finished if t.group_id in seat.groups and (whole := seat.take(t))]

    def _check_progress(self, seat: Seat, done: Slice) -> None:
        seat.worked.steps += done.steps
        seat.worked.seconds += done.seconds
        # Counted in the engine's own time: a driver that was busy elsewhere does not make an engine late.
        seat.barren_seconds = 0.0 if done.finished else seat.barren_seconds + SLICE_SECONDS
        if seat.groups and seat.barren_seconds > self._deadlines.rollout:
            raise Barren(
                f"{seat.handle.name} (rollout): generated for {seat.barren_seconds:.0f} s without finishing any of the "
                f"{len(seat.groups)} groups it has; deadlines.rollout is {self._deadlines.rollout:g} s. If responses "
                "are that long, raise deadlines.rollout; else look at the engine's log."
            )

    def _lose(self, seat: Seat, fault: RoleDied | DeadlineExceeded) -> None:
        """Put another process in the place of an engine, and have the others do what it was asked."""
        name = seat.handle.name
        if fault.who not in ("", name):  # the trainer's fault, whose weights it was to get
            raise fault
        groups = seat.lose()
        if seat.losses > self._max_restarts or any(group.lost > self._max_restarts for group in groups):
            raise GivenUp(_given_up(name, seat, groups, self._max_restarts, fault)) from fault
        others = sum(other.serves for other in self._seats[seat.model] if other is not seat)
        logger.warning(
            "%s is lost: %s\nA new process takes its place (%d of %d in a row); the %d groups it had go to %s.",
            name, fault, seat.losses, self._max_restarts, len(groups),
            f"{others} other{'s' * (others > 1)}" if others else "it, as no other serves", extra={"lost": name},
        )  # fmt: skip
        seat.revival = Revival(seat.handle, lambda: self._serving(seat), seat.losses)
        self._spread(seat.model, groups)

    def _seat(self, model: str, handle: Handle[RolloutWorker]) -> Seat:
        """One that was not started, as there was no room for it, is started like one that is lost."""
        seat = Seat(model, handle)
        if not handle.begun:
            seat.revival = Revival(handle, lambda: self._serving(seat), attempt=1)
        return seat

    def _serving(self, seat: Seat) -> Steps[Delivered | None]:
        return serving(seat.handle, lambda: self._wanted(seat.model), self._publish)

    def _wanted(self, model: str) -> Wanted:
        if model in self._asleep:
            return "asleep"
        return "later" if model in self._withdrawn else self._published.get(model)

    def _revive(self, seat: Seat, heard: bool) -> None:
        if not seat.revival.go_on(heard):
            self._require_place(seat.model)
            return
        revival, seat.revival = seat.revival, None
        seat.delivered = revival.result
        again = "serves again" if seat.losses else "serves now, too"
        logger.warning("%s %s, after %.1f s", seat.handle.name, again, time.monotonic() - revival.began)
        self._house(seat.model)

    def _house(self, model: str) -> None:
        """Groups that no engine could take, while there was none that serves."""
        homeless, self._homeless[model] = self._homeless[model], []
        self._spread(model, homeless)

    def _require_place(self, model: str) -> None:
        """One engine that has no place on the cluster is missed; if none has one, nothing goes on."""
        revivals = [seat.revival for seat in self._seats[model]]
        if all(revival is not None and revival.lacking for revival in revivals):
            waited = time.monotonic() - max(revival.lacking_since for revival in revivals)
            if waited > self._deadlines.placement:
                raise PlacementError(_without_place(model, self._seats[model], self._deadlines.placement))


def _without_place(model: str, seats: Sequence[Seat], seconds: float) -> str:
    waiting = "\n".join(f"  {seat.handle.name} waits for {seat.revival.lacking}" for seat in seats)
    return (
        f"No engine of {model} has had a place on the cluster within {seconds:g} s (deadlines.placement), since nodes "
        f"are lost:\n{waiting}\nAdd nodes and resume the run, or lower rollout.resources."
    )


def _given_up(name: str, seat: Seat, groups: list[AskedGroup], most: int, fault: Exception) -> str:
    if seat.losses > most:
        what = f"{name} was lost {seat.losses} times without finishing anything in between"
    else:
        worst = next(group for group in groups if group.lost > most)
        what = f"{worst.lost} engines were lost while they had the group {worst.request.group_id}"
    return f"{what}; rollout.max_restarts is {most}. The last fault: {fault}"
