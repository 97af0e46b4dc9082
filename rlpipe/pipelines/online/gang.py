"""The roles that train together: when a process of theirs is lost, all of them start again."""

import logging
import time
from collections.abc import Callable, Sequence

from rlpipe.pipelines.online.beside import Beside
from rlpipe.runtime.backoff import Losses, rest_before
from rlpipe.runtime.handle import DeadlineExceeded, RoleDied, Silent, Within
from rlpipe.runtime.roles import Started

logger = logging.getLogger(__name__)


class Gang:
    """Policy, critic, reference, and reward models that share their processes or are split. What they had learned since
    the last checkpoint is trained again, from what the ledger stored; that is `CatchingUp`."""

    def __init__(
        self, started: Started, roles: Sequence[str], max_restarts: int, heartbeat: float, beside: Beside
    ) -> None:
        """`roles`: those. `max_restarts`: how often in a row, without a step in between. `heartbeat`: seconds within
        which a process gives a sign of life. They start `beside` the rest."""
        self._beside = beside
        self._started, self._losses = started, Losses("training roles were", max_restarts)
        self._roles = {name: started.handles[name] for name in roles}
        self._within = Within("heartbeat", heartbeat)

    def replace(self, fault: Exception, step: int, meanwhile: Callable[[], None]) -> None:
        """Start the roles again after `fault`, `step` being the last committed one; `meanwhile` is called again and
        again. Raises `fault` if no process of theirs is lost, and `GivenUp` if this has happened too often."""
        while fault is not None:
            fault = self._replaced(fault, step, meanwhile)

    def _replaced(self, fault: Exception, step: int, meanwhile: Callable[[], None]) -> Exception | None:
        """What a new attempt is needed for, if it is: one of the new processes was lost."""
        lost = self._lost(fault)
        if lost is None:
            raise fault
        self._losses.add(lost, step)
        logger.warning(
            "%s\nThe training roles (%s) start again (%s), and train to step %d on what is stored.",
            lost, ", ".join(self._roles), self._losses, step, extra={"lost": "training"},
        )  # fmt: skip
        began = time.monotonic()
        try:
            self._beside.start(self._restart)
            while self._beside.busy:
                meanwhile()
            self._beside.finish()
        except (RoleDied, DeadlineExceeded) as again:
            return again
        logger.warning("the training roles are there again, after %.1f s", time.monotonic() - began)
        return None

    def _restart(self) -> None:
        time.sleep(rest_before(self._losses.in_a_row))
        self._started.restart(list(self._roles))

    def _lost(self, fault: Exception) -> Exception | None:
        """What tells that a process is lost: the fault itself, or that of a rank whose peers have failed of it."""
        handles = [handle for ranks in self._roles.values() for handle in ranks]
        names = {handle.name for handle in handles}
        if isinstance(fault, RoleDied | Silent) and fault.who in names:
            return fault
        for pulse in [handle.pulse(self._within) for handle in handles]:
            try:
                pulse.result()
            except (RoleDied, DeadlineExceeded) as silence:
                return silence
        return fault if isinstance(fault, DeadlineExceeded) and fault.who in names else None
