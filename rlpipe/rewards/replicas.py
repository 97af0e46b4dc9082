"""The replicas of a reward model or of a judge: which are free, and which are lost, until another process is in the
place.

They are taken by several threads. Whoever waits for one sees after those that are lost, without waiting for them.
"""

import logging
import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rlpipe.recipe.run import Deadlines
from rlpipe.runtime.handle import DeadlineExceeded, GivenUp, Handle, Pending, RoleDied, first_ready
from rlpipe.runtime.revival import Revival, restarted
from rlpipe.runtime.roles import PlacementError

logger = logging.getLogger(__name__)

_SECONDS_PER_LOOK = 0.25
"""How long a free one is waited for before those that are lost are seen after again."""

Replica = list[Handle[Any]]
"""The ranks of it."""


@dataclass(slots=True, eq=False)
class Post:
    """Where a replica is."""

    replica: Replica
    losses: int = 0
    """Processes lost here since one has answered."""
    revival: Revival[None] | None = None
    """Under way while it is lost."""

    @property
    def name(self) -> str:
        return self.replica[0].name


class Replicas:
    """See above."""

    def __init__(
        self, reward: str, replicas: Sequence[Replica], replaced_within: Deadlines | None, max_restarts: int
    ) -> None:
        """`replaced_within` is None where replicas cannot be replaced alone; `max_restarts`: how often in a row one is,
        without having answered."""
        self._reward, self._replaced_within, self._max_restarts = reward, replaced_within, max_restarts
        self._posts = [Post(replica) for replica in replicas]
        self._free: queue.SimpleQueue[Post] = queue.SimpleQueue()
        self._seeing_after = threading.Lock()
        for post in self._posts:
            self._free.put(post)

    def __len__(self) -> int:
        return len(self._posts)

    def take(self) -> Post:
        """One that is free, to be given back or lost. Raises `GivenUp` if one is lost again and again, and
        `PlacementError` if none has a place on the cluster for longer than deadlines.placement."""
        while True:
            self._see_after_the_lost()
            with suppress(queue.Empty):
                return self._free.get(timeout=_SECONDS_PER_LOOK)
            self._require_place()

    def give_back(self, post: Post) -> None:
        """It lives."""
        post.losses = 0
        self._free.put(post)

    def lose(self, post: Post, fault: RoleDied) -> None:
        """Have another process take its place, which is begun at once. Raises `fault` where that cannot be, and
        `GivenUp`."""
        if self._replaced_within is None:
            self._free.put(post)
            raise fault
        with self._seeing_after:
            self._lose(post, fault)
            self._go_on(post)

    def _lose(self, post: Post, fault: Exception) -> None:
        post.losses += 1
        post.revival = Revival(post.replica[0], lambda: restarted(post.replica[0]), post.losses)
        if post.losses > self._max_restarts:
            raise GivenUp(
                f"{post.name} was lost {post.losses} times without an answer in between; max_restarts of the reward "
                f"`{self._reward}` is {self._max_restarts}. The last fault: {fault}"
            ) from fault
        logger.warning(
            "%s is lost: %s\nA new process takes its place (%d of %d in a row).",
            post.name, fault, post.losses, self._max_restarts, extra={"lost": post.name},
        )  # fmt: skip

    def _see_after_the_lost(self) -> None:
        if not self._seeing_after.acquire(blocking=False):
            return  # another thread does
        try:
            for post in self._posts:
                if post.revival is not None:
                    self._go_on(post)
        finally:
            self._seeing_after.release()

    def _go_on(self, post: Post) -> None:
        revival, pending = post.revival, post.revival.pending
        try:
            there = revival.go_on(pending is not None and _has_something_to_say(pending))
        except (RoleDied, DeadlineExceeded) as again:
            self._lose(post, again)
            return
        if there:
            logger.warning("%s serves again, after %.1f s", post.name, time.monotonic() - revival.began)
            post.revival = None
            self._free.put(post)

    def _require_place(self) -> None:
        """One without a place on the cluster is missed; if none has one, nothing goes on."""
        revivals = [post.revival for post in self._posts]
        if all(revival is not None and revival.lacking for revival in revivals):
            waited = time.monotonic() - max(revival.lacking_since for revival in revivals)
            if waited > self._replaced_within.placement:
                raise PlacementError(self._without_place())

    def _without_place(self) -> str:
        lacking = "; ".join(f"{post.name} waits for {post.revival.lacking}" for post in self._posts)
        return (
            f"No replica of the reward `{self._reward}` has had a place on the cluster within "
            f"{self._replaced_within.placement:g} s (deadlines.placement), since nodes are lost: {lacking} Add nodes "
            "and resume the run, or lower the resources of the reward."
        )


def _has_something_to_say(pending: Pending[Any]) -> bool:
    """Also that it is overdue."""
    return bool(first_ready([pending], 0.0)) or pending.seconds_left() <= 0
