"""What Ray and our handles take for a call: real actors, one process each, which compute nothing."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fleet.idle import Idle, RemoteLeanHost
from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.training import Resources
from rlpipe.runtime import ray_process
from rlpipe.runtime.handle import Handle, Pending, Within, first_ready
from rlpipe.runtime.ray_runtime import RayRuntime, connected
from rlpipe.runtime.roles import RoleSpec

SOON = Within("rollout", 600.0)
RESPONSES, TOKENS = 8, 100
SLICE = 0.25


class Calls(NamedTuple):
    """Of one kind of call, for so many actors."""

    actors: int
    cpu: float
    """Seconds of the driver's CPU for a call, all its threads."""
    wall: float
    """Seconds from one round of calls to the next, for a call."""


class Slices(NamedTuple):
    """Engines whose slices are under way all the time, as the pool has them."""

    actors: int
    cpu: float
    """Seconds of the driver's CPU for a slice."""
    busy: float
    """Of the time, what the driver computed: 1 is a whole core."""
    looks: float
    """How many slices were heard at a look, in the mean."""


def measured(counts: Sequence[int], rounds: int, seconds: float) -> tuple[list[Calls], list[Slices]]:
    """For each number of actors."""
    ray_process.RemoteHost = RemoteLeanHost
    calls, slices = [], []
    with connected():
        runtime = RayRuntime(Deadlines(start=600, placement=120))
        try:
            few, folder = Resources(cpus=0.01, gpus=0.0), {"PYTHONPATH": str(Path(__file__).parents[1])}
            spec = RoleSpec(
                "engine", Idle, lambda seat: (RESPONSES, TOKENS), max(counts), few, 1, "rollout", folder, again=(0, 0)
            )
            started = runtime.start([spec])
            started.ready()
            for count in counts:
                handles = started.handles["engine"][:count]
                _round(handles)
                calls.append(_calls(handles, rounds))
                slices.append(_slices(handles, seconds))
        finally:
            runtime.stop()
    return calls, slices


def _calls(handles: Sequence[Handle[Idle]], rounds: int) -> Calls:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(rounds):
        _round(handles)
    made = rounds * len(handles)
    return Calls(len(handles), (time.process_time() - cpu) / made, (time.perf_counter() - wall) / made)


def _round(handles: Sequence[Handle[Idle]]) -> None:
    """A call of each, and all answers."""
    waiting: list[Pending[Any]] = [handle.call(SOON, Idle.nothing) for handle in handles]
    while waiting:
        ready = {id(pending) for pending in first_ready(waiting, 60.0)}
        for pending in waiting:
            if id(pending) in ready:
                pending.result()
        waiting = [pending for pending in waiting if id(pending) not in ready]


def _slices(handles: Sequence[Handle[Idle]], seconds: float) -> Slices:
    """As `EnginePool` does it: whoever's slice is there gets the next one."""
    waiting = {handle.call(SOON, Idle.advance, SLICE): handle for handle in handles}
    looks = heard = 0
    cpu, began = time.process_time(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        looks += 1
        for pending in first_ready(list(waiting), SLICE):
            pending.result()
            handle = waiting.pop(pending)
            waiting[handle.call(SOON, Idle.advance, SLICE)] = handle
            heard += 1
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    for pending in waiting:
        pending.result()
    return Slices(len(handles), cpu / heard, cpu / wall, heard / looks)
