"""Going on with a run that ended early: what of it stands, and from where each stage goes on.

A stage that completed is not run again. An offline stage goes on from its last checkpoint, or begins again without one.
An RL stage begins again; what it had done is moved aside.
"""

from itertools import count
from pathlib import Path
from typing import Any

from rlpipe.data.storage import Storage
from rlpipe.observe import events
from rlpipe.pipelines.sole import LOCK
from rlpipe.pipelines.stage import FINAL_ADAPTER, FINAL_MODEL, RECIPE
from rlpipe.recipe.tasks import RlRecipe, StageRecipe

SET_ASIDE = "set-aside"
KEPT = (SET_ASIDE, RECIPE, LOCK)
"""What is of the whole run, where a stage is all there is of it."""


def finished(directory: Path) -> bool:
    """Whether the stage completed, and its result is there."""
    ended = [event for event in _events(directory) if event["kind"] in ("run_started", "run_finished")]
    made = any((directory / part).is_dir() for part in (FINAL_MODEL, FINAL_ADAPTER))
    return bool(ended) and ended[-1].get("status") == "completed" and made


def make_room(recipe: StageRecipe, directory: Path) -> Path | None:
    """Move what an RL stage that did not complete has left out of its way; returns where it lies now."""
    if not (isinstance(recipe, RlRecipe) and _events(directory)):
        return None
    places = (directory / SET_ASIDE / str(number) for number in count(1))
    place = next(place for place in places if not place.exists())
    place.mkdir(parents=True)
    for path in sorted(directory.iterdir()):
        if path.name not in KEPT:
            path.rename(place / path.name)
    return place


def _events(directory: Path) -> list[dict[str, Any]]:
    found, _ = events.read(Storage(directory))
    return found
