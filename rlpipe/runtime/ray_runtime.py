"""Roles as Ray actors: `rlpipe run`, on this machine or on the cluster that RAY_ADDRESS names."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from rlpipe.recipe.run import Deadlines
from rlpipe.runtime.handle import Handle, Within, results
from rlpipe.runtime.placing import not_given, reserve
from rlpipe.runtime.ray_handle import RayHandle
from rlpipe.runtime.ray_pending import RayPending
from rlpipe.runtime.ray_process import RayProcess
from rlpipe.runtime.reservation import OWN_MACHINE
from rlpipe.runtime.roles import PlacementError, RoleSpec, Seat, seats_at

_SECONDS_PER_LOOK = 1.0


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Joins the cluster in RAY_ADDRESS, or starts Ray on this machine for the length of the block. A process that is
    connected already stays so."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    local = {"include_dashboard": False, "resources": {OWN_MACHINE: 1}} if address == "local" else {}
    # Role processes say what matters through the driver; their raw output stays in Ray's session logs.
    ray.init(address=address, log_to_driver=False, logging_level="error", **local)
    try:
        yield
    finally:
        ray.shutdown()


class RayStarted:
    """Roles whose processes are up and whose constructors run."""

    def __init__(self, deadlines: Deadlines) -> None:
        self.handles: dict[str, list[Handle[Any]]] = {}
        self._deadlines, self._within = deadlines, Within("start", deadlines.start)
        self._processes: dict[str, tuple[RoleSpec, list[RayProcess]]] = {}
        self._builds: list[RayPending[None]] = []

    def add(self, spec: RoleSpec, processes: list[RayProcess]) -> None:
        """Build one role in its processes."""
        self._processes[spec.name] = spec, processes
        self.handles[spec.name] = self._build(spec, processes)

    def restart(self, names: Sequence[str]) -> None:
        """See `Started.restart`."""
        gang = [self._processes[name] for name in names]
        owned = [process for spec, processes in gang if spec.shares is None for process in processes]
        for process in owned:
            process.restart()
        self._settle(owned, [spec for spec, _ in gang])
        self._builds = []  # an attempt before this one may have left some
        for spec, processes in sorted(gang, key=lambda of: of[0].shares is not None):
            self._build(spec, processes)
        self.ready()

    def _settle(self, processes: list[RayProcess], roles: list[RoleSpec]) -> None:
        """Wait until these are up. Those whose node is gone wait for room on another one, which is a wait of its own:
        it may come to an end when a node joins."""
        last_placed = time.monotonic()
        until = last_placed + self._within.seconds  # who is not up by then is told of by the next question
        starting = {process.host.pulse.remote(): process for process in processes}
        while starting and (now := time.monotonic()) < until:
            for pulse in ray.wait(list(starting), num_returns=len(starting), timeout=_SECONDS_PER_LOOK)[0]:
                process = starting.pop(pulse)
                if process.moved() and _failed(pulse):
                    process.restart()
                    starting[process.host.pulse.remote()] = process
            if not any(process.place.lacking() for process in starting.values()):
                last_placed = now
            elif now - last_placed > self._deadlines.placement:
                raise PlacementError(not_given(roles, self._deadlines.placement))
            else:
                until = now + self._within.seconds

    def _build(self, spec: RoleSpec, processes: list[RayProcess]) -> list[Handle[Any]]:
        names = [spec.name if len(processes) == 1 else f"{spec.name}[{i}]" for i in range(len(processes))]
        handles: list[Handle[Any]] = []
        by_name = dict(zip(names, processes, strict=True))
        for name, seat in zip(names, _seats(names, processes, self._within), strict=True):
            handle = RayHandle(name, by_name, spec, seat.local_count, self._deadlines)
            self._builds.append(handle.build(spec.arguments(seat)))
            handles.append(handle)
        return handles

    def ready(self) -> None:
        builds, self._builds = self._builds, []
        results(builds)


class RayRuntime:
    """On the cluster this process is connected to: one bundle of a placement group for each Ray actor, which hosts a
    role, and those that share its process."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._processes: list[RayProcess] = []

    def start(self, roles: list[RoleSpec]) -> RayStarted:
        owners = [spec for spec in roles if spec.shares is None]
        places = reserve(roles, self._deadlines.placement)
        processes = {spec.name: [RayProcess(spec, place) for place in places[spec.name]] for spec in owners}
        self._processes += [process for each in processes.values() for process in each]
        started = RayStarted(self._deadlines)
        for spec in owners + [spec for spec in roles if spec.shares is not None]:
            started.add(spec, processes[spec.shares or spec.name])
        return started

    def stop(self) -> None:
        for process in self._processes:
            process.end()
        for process in self._processes:
            process.place.give_back()
        self._processes = []


def _failed(pulse: Any) -> bool:
    try:
        ray.get(pulse)
    except ray.exceptions.RayError:
        return True
    return False


def _seats(names: list[str], processes: list[RayProcess], within: Within) -> list[Seat]:
    pendings = [
        RayPending(process.host, name, "its process start", process.host.meeting_point.remote(), within)
        for name, process in zip(names, processes, strict=True)
    ]
    return seats_at(results(pendings))
