"""`rlpipe`, with every call of a role written down:  python -m step.traced FILE run RECIPE ...

FILE gets one JSON line per call when it is done: who was called, what, and from when to when (seconds since 1970).
"""

import inspect
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple


class Call(NamedTuple):
    """One call of a role."""

    lane: str
    what: str
    begin: float
    end: float


def read(lines: list[str]) -> list[Call]:
    """What FILE holds, in the order of the calls' beginnings."""
    return sorted((Call(*json.loads(line)) for line in lines), key=lambda call: call.begin)


def main() -> None:
    file = sys.argv.pop(1)
    from rlpipe.cli import app
    from rlpipe.runtime.ray_runtime import RayRuntime

    start = RayRuntime.start
    RayRuntime.start = lambda self, roles: start(self, [replace(s, role=_traced(s.role, s.name, file)) for s in roles])
    app()


def _traced(role: type, lane: str, file: str) -> type:
    """The role, but for its public methods, which write down when they were called."""
    public = {name: f for name, f in inspect.getmembers(role, inspect.isfunction) if not name.startswith("_")}
    return type(role.__name__, (role,), {name: _timed(f, lane, file) for name, f in public.items()})


def _timed(function: Callable[..., Any], lane: str, file: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.time()
        try:
            return function(*args, **kwargs)
        finally:
            with open(file, "a") as out:
                out.write(json.dumps([lane, function.__name__, begin, time.time()]) + "\n")

    return call


if __name__ == "__main__":
    main()
