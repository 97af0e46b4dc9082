"""Replicas of a frozen role, asked by whoever finds one free.

A replica that died, or whose process gives no sign of life, is nobody's fault: the next one that is free is asked the
same, while another process takes its place; one that shares its process with another role, or is split over several,
cannot be replaced alone, and its death is raised. What gets no answer within its deadline is a failure.
"""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from rlpipe.data.flow import Failure
from rlpipe.recipe.run import Deadlines
from rlpipe.rewards.replicas import Replica, Replicas
from rlpipe.rewards.reward import Allowance
from rlpipe.runtime.handle import DeadlineExceeded, GivenUp, RoleDied, Silent, Within, results

T = TypeVar("T")


class Fleet:
    """See above."""

    def __init__(
        self,
        reward: str,
        replicas: Sequence[Replica],
        replaced_within: Deadlines | None,
        max_restarts: int,
        heartbeat: float = Deadlines().heartbeat,
    ) -> None:
        """`replaced_within` says how long another place for a process is waited for; None where replicas cannot be
        replaced. `heartbeat`: seconds for a sign of life."""
        self._reward, self._heartbeat, self._max_restarts = reward, heartbeat, max_restarts
        self._replicas = Replicas(reward, replicas, replaced_within, max_restarts)

    def __len__(self) -> int:
        return len(self._replicas)

    def ask(self, call: Callable[[Replica, Within], T], allowance: Allowance) -> T | Failure:
        """What `call` gets from a replica; a failure if that takes too long."""
        losses = 0
        while True:
            post = self._replicas.take()  # waiting for one is not the time of what is asked
            try:
                answer = self._asked(call, post.replica, allowance)
            except RoleDied as fault:
                losses += 1
                self._replicas.lose(post, fault)
                if losses > self._max_restarts:
                    raise GivenUp(self._says_deadly(losses, fault)) from fault
                allowance = Allowance(allowance.seconds)
            except BaseException:
                self._replicas.give_back(post)
                raise
            else:
                self._replicas.give_back(post)
                return answer

    def _says_deadly(self, losses: int, fault: RoleDied) -> str:
        return (
            f"{losses} replicas of the reward `{self._reward}` were lost while they were asked about the same "
            f"responses; its max_restarts is {self._max_restarts}. The last fault: {fault}"
        )

    def _asked(self, call: Callable[[Replica, Within], T], replica: Replica, allowance: Allowance) -> T | Failure:
        begin = time.monotonic()
        try:
            return call(replica, Within("reward", allowance.left))
        except Silent as silence:
            raise RoleDied(str(silence), silence.who) from None
        except DeadlineExceeded as error:
            self._require_life(replica)
            return Failure("deadline", str(error).partition("\n")[0])
        finally:
            allowance.spend(time.monotonic() - begin)

    def _require_life(self, replica: Replica) -> None:
        """Raises `RoleDied` for a process that hangs: one that can be replaced alone is, and of others those with which
        it stands and falls are told."""
        within = Within("heartbeat", self._heartbeat)
        try:
            results([rank.pulse(within) for rank in replica])
        except DeadlineExceeded as silence:
            raise RoleDied(str(silence), silence.who) from None
