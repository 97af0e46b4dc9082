"""A folder that has of an RL stage what it takes to train some of its committed steps again.

What is there already is linked to, and nothing is written through a link: checkpoints, models and rollouts of a stage
are only ever replaced as a whole.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from rlpipe.data.storage import Storage
from rlpipe.ledger import manifests
from rlpipe.observe import rollouts
from rlpipe.pipelines import checkpoints
from rlpipe.pipelines.online.saving import STATE
from rlpipe.training.checkpoint import CheckpointMismatch
from rlpipe.training.one_rank import as_one_rank

_ROLES = ("policy", "critic")


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where to go on from."""

    step: int
    """Of a checkpoint; 0 is the model that the stage began with."""
    passed_over: tuple[str, ...]
    """Why checkpoints that are nearer could not be used, in words."""


def fill(folder: Path, place: Path, step: int) -> Beginning:
    """Put into the empty `folder` what training `step` of the stage at `place` needs. Raises FileNotFoundError if the
    stored trajectories of a step are gone."""
    passed_over: list[str] = []
    earlier = [path for path in checkpoints.standing(place) if _step_of(path) < step]
    taken = next((path for path in reversed(earlier) if _take(path, folder, passed_over)), None)
    begun = 0 if taken is None else _step_of(taken)
    for each in range(begun + 1, step + 1):
        _link(place / rollouts.name_of(each), folder / rollouts.name_of(each))
    _, manifest = manifests.read(Storage(place))
    manifests.Manifests(Storage(folder)).put(manifest | {"in_flight": [], "segments": {}})
    return Beginning(begun, tuple(passed_over))


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _take(checkpoint: Path, folder: Path, passed_over: list[str]) -> bool:
    """Whether this checkpoint is in `folder` now, as one rank reads it."""
    if damage := checkpoints.damage_of(checkpoint):
        passed_over.append(f"{checkpoint.name} is damaged: {damage}")
        return False
    layout = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["layout"]
    if all(count == 1 for key, count in layout.items() if key.endswith(".ranks")):
        _link(checkpoint, checkpoints.place(folder, _step_of(checkpoint)))
        return True
    try:
        _convert(checkpoint, folder)
    except CheckpointMismatch as error:
        passed_over.append(f"{checkpoint.name} is of several ranks, and cannot be read by one: {error}")
        return False
    return True


def _convert(checkpoint: Path, folder: Path) -> None:
    partial = folder / checkpoints.FOLDER / f".{checkpoint.name}"
    for role in _ROLES:
        if (checkpoint / role).is_dir():
            as_one_rank(checkpoint / role, partial / role)
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    state["layout"] |= {key: 1 for key in state["layout"] if key.endswith(".ranks")}
    (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
    checkpoints.commit(partial, folder, _step_of(checkpoint), keep=1)


def _link(what: Path, place: Path) -> None:
    if not what.exists():
        raise FileNotFoundError(what)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(what)
