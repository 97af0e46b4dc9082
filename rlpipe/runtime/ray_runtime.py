"""Roles as Ray actors: `rlpipe run`, on this machine or on the cluster that RAY_ADDRESS names."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from rlpipe.recipe import secrets
from rlpipe.recipe.run import Deadlines
from rlpipe.runtime.handle import DeadlineExceeded, Handle, RoleDied, Within, results
from rlpipe.runtime.joining import join
from rlpipe.runtime.placing import Place, beside, reserve
from rlpipe.runtime.ray_handle import RayHandle
from rlpipe.runtime.ray_pending import STARTING, RayPending
from rlpipe.runtime.ray_process import RayProcess
from rlpipe.runtime.recorder import Recorded
from rlpipe.runtime.roles import RoleSpec, Seat, seats_at
from rlpipe.runtime.settling import Settling
from rlpipe.runtime.termination import termination_kept


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Joins the cluster in RAY_ADDRESS, or starts Ray on this machine for the length of the block. A process that is
    connected already stays so. Raises as `join`."""
    if ray.is_initialized():
        yield
        return
    # What Ray starts here inherits no keys: who needs one is given it. Role processes say what matters through the
    # driver; their raw output stays in Ray's session logs.
    with secrets.withheld(), _command_hidden(), termination_kept():
        join()
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _command_hidden() -> Iterator[None]:
    """Ray keeps the driver's command line and shows it with the job; it is to do so without what is secret in it."""
    from ray._private import utils

    named = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: secrets.hide(named())
    try:
        yield
    finally:
        utils.get_entrypoint_name = named


class RayStarted:
    """Roles whose processes are up and whose constructors run."""

    def __init__(self, deadlines: Deadlines) -> None:
        self.handles: dict[str, list[Handle[Any]]] = {}
        self._deadlines, self._within = deadlines, Within(STARTING, deadlines.start)
        self._processes: dict[str, tuple[RoleSpec, dict[str, RayProcess]]] = {}
        """By the names of roles, and then of handles."""
        self._builds: list[RayPending[None]] = []

    def add(self, spec: RoleSpec, processes: list[RayProcess]) -> dict[str, RayProcess]:
        """Build one role in its processes; returns them by the names of its handles."""
        names = [spec.name if len(processes) == 1 else f"{spec.name}[{i}]" for i in range(len(processes))]
        self._processes[spec.name] = spec, dict(zip(names, processes, strict=True))
        self.handles[spec.name] = self._build(*self._processes[spec.name])
        return self._processes[spec.name][1]

    def restart(self, names: Sequence[str]) -> None:
        """See `Started.restart`."""
        gang = [self._processes[name] for name in names]
        owned = {name: each for spec, processes in gang if spec.shares is None for name, each in processes.items()}
        # Of those that could be somewhere else; one beside others has its place in their group.
        elsewhere = [of for spec, of in self._processes.values() if spec.again is not None and spec.beside is None]
        alone = [each for of in elsewhere for each in of.values()]
        for process in owned.values():
            process.restart()
        Settling(owned, [spec for spec, _ in gang], alone, self._deadlines).wait()
        self._builds = []  # an attempt before this one may have left some
        for spec, processes in sorted(gang, key=lambda of: of[0].shares is not None):
            self._build(spec, processes)
        self.ready()

    def _build(self, spec: RoleSpec, processes: dict[str, RayProcess]) -> list[Handle[Any]]:
        handles: list[Handle[Any]] = []
        begun = {name: process for name, process in processes.items() if process.begun}
        seats = dict(zip(begun, _seats(begun, self._within), strict=True))
        for index, name in enumerate(processes):
            sharing = seats[name].local_count if name in seats else 1
            hosts = self._beside(spec, index)
            handle = RayHandle(name, processes, spec, sharing, self._deadlines, hosts)
            self._builds += [handle.build(spec.arguments(seats[name]))] if name in seats else []
            handles.append(handle)
        return handles

    def _beside(self, spec: RoleSpec, index: int) -> list[RayProcess]:
        if spec.beside is None:
            return []
        _, hosts = self._processes[spec.beside]
        return [list(hosts.values())[i] for i in beside(index, len(hosts), spec.count)]

    def ready(self) -> None:
        builds, self._builds = self._builds, []
        results(builds)


class RayRuntime:
    """On the cluster this process is connected to: one bundle of a placement group for each Ray actor, which hosts a
    role, and those that share its process."""

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._places: list[Place] = []
        self._processes: list[RayProcess] = []
        self._by_name: dict[str, RayProcess] = {}
        """By the names of the handles of the roles that they are for."""

    def start(self, roles: list[RoleSpec]) -> RayStarted:
        owners = [spec for spec in roles if spec.shares is None]
        places = reserve(roles, self._deadlines.placement)
        self._places += [place for each in places.values() for place in each]
        processes = {spec.name: [self._process(spec, place) for place in places[spec.name]] for spec in owners}
        started = RayStarted(self._deadlines)
        # Whoever shares a process comes after its owner, and whoever lives beside others after all that these host.
        for spec in sorted(roles, key=lambda spec: (spec.beside is not None, spec.shares is not None)):
            by_name = started.add(spec, processes[spec.shares or spec.name])
            self._by_name |= by_name if spec.shares is None else {}
        return started

    def _process(self, spec: RoleSpec, place: Place) -> RayProcess:
        process = RayProcess(spec, place)
        self._processes.append(process)
        return process

    def stop(self) -> None:
        for process in self._processes:
            process.end()
        for place in self._places:
            place.give_back()
        self._places, self._processes, self._by_name = [], [], {}

    def record(self) -> None:
        for pending in self._asked("beginning to record", lambda host: host.record.remote()).values():
            with contextlib.suppress(RoleDied, DeadlineExceeded):  # one that is lost has no trace, and others do
                pending.result()

    def recorded(self) -> Recorded:
        found = dict.fromkeys(self._by_name)
        for name, pending in self._asked("handing over what it recorded", lambda host: host.recorded.remote()).items():
            with contextlib.suppress(RoleDied, DeadlineExceeded):
                found[name] = pending.result()
        return Recorded(found, _ray_timeline())

    def _asked(self, what: str, ask: Callable[[Any], Any]) -> dict[str, RayPending[Any]]:
        """Each process that has begun, behind what it is at; an engine may still wait for room."""
        within, begun = Within("train", self._deadlines.train), {n: p for n, p in self._by_name.items() if p.begun}
        return {name: RayPending(p.host, name, what, ask(p.host), within) for name, p in begun.items()}


def _ray_timeline() -> list[dict[str, Any]]:
    logger = logging.getLogger("ray._private.state")
    before, logger.level = logger.level, logging.ERROR  # it announces where it will take this from one day
    try:
        return ray.timeline()
    finally:
        logger.level = before


def _seats(processes: dict[str, RayProcess], within: Within) -> list[Seat]:
    pendings = [
        RayPending(process.host, name, "its process start", process.host.meeting_point.remote(), within)
        for name, process in processes.items()
    ]
    return seats_at(results(pendings))
