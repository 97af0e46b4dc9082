"""The training processes, as the driver can ask and end them."""

import contextlib
import os
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError

from rlpipe.pipelines.offline.failures import Launch
from rlpipe.runtime.handle import Silent
from rlpipe.runtime.ray_heartbeat import Heartbeat
from rlpipe.runtime.ray_overdue import answers, cluster
from rlpipe.runtime.threads import stacks


class Ranks:
    """Those that have begun. Training has a thread of its own there, beside the one that answers here."""

    def __init__(self, channel: Any, launch: Launch) -> None:
        """`channel`: the actor of a `Channel` that they have joined."""
        self._channel, self._launch = channel, launch
        self._heartbeats: dict[int, Heartbeat] = {}
        self._seen: dict[int, Any] = {}
        """What the channel knew when it could be asked; its node may be gone when they are to be ended."""

    def require_life(self) -> None:
        """Raises `Silent` for one that hangs."""
        if len(self._heartbeats) < self._launch.ranks:
            for rank, process in self._processes().items():
                ask = partial(process.execute.remote, os.getpid)
                self._heartbeats.setdefault(rank, Heartbeat(ask))
        for rank, heartbeat in self._heartbeats.items():
            seconds = self._launch.deadlines.heartbeat
            if heartbeat.missed(seconds):
                name = self._launch.name
                raise Silent(
                    f"Rank {rank} of {name} training gave no sign of life within {seconds:g} s (deadlines.heartbeat).\n"
                    f"{cluster()}",
                    f"{name}[{rank}]",
                )

    def surroundings(self) -> str:
        """What the cluster has not given, and where each of them stands."""
        processes = self._processes()
        said = answers([process.execute.remote(stacks) for process in processes.values()])
        stand = [f"Rank {rank} stands at:\n{stack}" for rank, stack in zip(processes, said, strict=True)]
        return "\n".join([cluster(), *stand])

    def end(self) -> None:
        """Kill them, whatever they do."""
        for process in self._processes().values():
            with contextlib.suppress(RayError):
                ray.kill(process)

    def _processes(self) -> dict[int, Any]:
        """By rank, as far as can be found out."""
        with contextlib.suppress(RayError):
            self._seen = dict(sorted(ray.get(self._channel.processes.remote(), timeout=5).items()))
        return self._seen
