"""`rlpipe run --profile`: what all processes of an RL stage do in some of its steps, as traces in its directory.

profile/timeline.json       driver, roles and engines in one picture                           (observe/trace.py)
profile/ROLE.json.gz        torch's operators and kernels in each process, training ranks and engines alike
profile/ray.json            Ray's own timeline of its tasks

An offline stage writes the timeline, and its ranks write what torch's profiler has (offline/trl_profile.py). It is a
view of the events: what goes wrong with it stops no run.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from rlpipe.data.storage import Storage
from rlpipe.observe.events import Event
from rlpipe.observe.trace import KINDS, numbered, timeline
from rlpipe.runtime.recorder import Call
from rlpipe.runtime.roles import Runtime

FOLDER = "profile"


class Steps(NamedTuple):
    """The first and the last step to record."""

    first: int
    last: int


class Profile:
    """A view that records what roles do from the beginning of the first step to the end of the last."""

    def __init__(self, runtime: Runtime, storage: Storage, steps: Steps, tell: Callable[[str], None]) -> None:
        """`tell` gets what a person should know."""
        self._runtime, self._storage, self._steps, self._tell = runtime, storage, steps, tell
        self._last = steps.last
        self._recording = self._done = False
        self._events: list[Event] = []
        self._calls: dict[str, list[Call]] = {}

    def __call__(self, event: Event) -> None:
        if event["kind"] in KINDS:
            self._events.append(event)
        match event["kind"]:
            case "run_started" if event["steps"]:
                self._last = min(self._steps.last, event["steps"])
            case "phase_started" if event["step"] == self._steps.first and not (self._recording or self._done):
                self._runtime.record()
                self._recording = True
            case "metrics" if self._recording and event["step"] >= self._last:
                self._finish()
            case "run_finished":
                self._write("timeline.json", timeline(self._events, self._calls))
                if not self._storage.names(f"{FOLDER}/*.json.gz"):
                    which = f"{self._steps.first}:{self._steps.last}"
                    self._tell(f"--profile-steps {which}: nothing was recorded, as the stage has no such whole step")

    def _finish(self) -> None:
        self._recording, self._done = False, True
        recorded = self._runtime.recorded()
        for process, found in recorded.processes.items():
            if found is None:
                self._tell(f"{process} was started anew while it was recorded, and has no trace")
                continue
            self._calls[process] = list(found.calls)
            self._storage.write(f"{FOLDER}/{file_name(process)}.json.gz", found.trace)
        if recorded.cluster:
            self._write("ray.json", numbered(recorded.cluster))

    def _write(self, name: str, content: dict[str, Any]) -> None:
        self._storage.write(f"{FOLDER}/{name}", json.dumps(content).encode())


def file_name(process: str) -> str:
    """`policy[1]` as `policy-1`."""
    return process.replace("[", "-").replace("]", "")
