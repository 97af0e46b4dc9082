"""Training roles that start again in other processes, until these are up."""

import time
from collections.abc import Mapping, Sequence

from rlpipe.recipe.run import Deadlines
from rlpipe.runtime.handle import RoleDied, Within
from rlpipe.runtime.placing import not_given
from rlpipe.runtime.ray_pending import STARTING, RayPending
from rlpipe.runtime.ray_process import RayProcess
from rlpipe.runtime.roles import PlacementError, RoleSpec

_SECONDS_PER_LOOK = 1.0


class Settling:
    """Those whose node is gone wait for room on another one, which is a wait of its own: it may come to an end when a
    node joins. For so long engines and replicas that are lost, too, leave it to them: they are of no use without
    training, and training goes on with fewer of them."""

    def __init__(
        self,
        processes: Mapping[str, RayProcess],
        roles: Sequence[RoleSpec],
        others: Sequence[RayProcess],
        deadlines: Deadlines,
    ) -> None:
        """`processes`: of `roles`, by the names of their handles. `others`: of roles that can be replaced alone."""
        self._processes, self._roles, self._others, self._deadlines = processes, roles, others, deadlines
        self._starting = {name: self._started(name) for name in processes}

    def wait(self) -> None:
        """Raises `PlacementError` if there is no room within deadlines.placement, and `NotStarted`."""
        placed = time.monotonic()
        late = placed + self._deadlines.start
        try:
            while self._starting:
                self._hear()
                now = time.monotonic()
                if not self._make_room():
                    placed = now
                    self._leave_the_rest()
                elif now - placed > self._deadlines.placement:
                    raise PlacementError(not_given(self._roles, self._deadlines.placement))
                else:
                    late = now + self._deadlines.start
                if self._starting and now > late:
                    raise next(iter(self._starting.values())).late()
        finally:
            self._leave_the_rest()

    def _started(self, name: str) -> RayPending[int]:
        host = self._processes[name].host
        within = Within(STARTING, self._deadlines.start)
        return RayPending(host, name, "its process start", host.pulse.remote(), within)

    def _hear(self) -> None:
        """Of those that are up; one that was started on a node that was gone already starts once more."""
        waiting = dict(self._starting)
        done = RayPending.ready(list(waiting.values()), _SECONDS_PER_LOOK)
        for name in [name for name, pending in waiting.items() if pending in done]:
            pending = self._starting.pop(name)
            try:
                pending.result()
            except RoleDied:
                if self._processes[name].moved():
                    self._processes[name].restart()
                    self._starting[name] = self._started(name)

    def _leave_the_rest(self) -> None:
        """Those that stepped back ask for room anew."""
        for other in self._others:
            other.place.ask_again()

    def _make_room(self) -> bool:
        """Whether some have no place; the others then make room."""
        lacking = any(self._processes[name].place.lacking() for name in self._starting)
        for other in self._others if lacking else ():
            other.make_room()
        return lacking
