"""`rlpipe` as a command, and what it writes."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from step import machine

RLPIPE = [sys.executable, "-c", "from rlpipe.cli import app; app()"]
TRACED = [sys.executable, "-m", "step.traced"]
"""The same, with the calls of its roles written into the file that is named first."""
DISTANT = [sys.executable, "-m", "step.distant"]
"""The same with an engine that is far away; the first argument says how many seconds a token takes it."""

Event = dict[str, Any]


def environment() -> dict[str, str]:
    """What every process of the benchmark gets; rlpipe's own code comes from beside it."""
    here = Path(__file__)
    path = [str(here.parents[1]), str(here.parents[2]), os.environ.get("PYTHONPATH", "")]
    return machine.SHARED_CORES | os.environ | machine.ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def read_events(file: Path) -> list[Event]:
    """The events written so far; a half line at the end is left for the next time."""
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines if line]
