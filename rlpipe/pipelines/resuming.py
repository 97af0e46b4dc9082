"""Going on with a run that ended early: which of its stages are done.

A stage that completed is not run again. An offline stage goes on from its last checkpoint, or begins again without one;
an RL stage goes on where its ledger stands.
"""

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from rlpipe.data import remote
from rlpipe.data.remote import storage_of
from rlpipe.ledger import manifests
from rlpipe.observe import comparison, events
from rlpipe.pipelines.stage import RESULTS
from rlpipe.pipelines.supervision import INPUTS
from rlpipe.recipe import secrets
from rlpipe.recipe.resolved import FILE, to_yaml
from rlpipe.recipe.tasks import PipelineRecipe, Recipe
from rlpipe.training.checkpoint import CheckpointMismatch

LASTING = (
    "seed", "model", "adapter", "critic.model", "critic.adapter", "algorithm.group_size", "algorithm.dynamic_sampling",
    "schedule.prompts_per_step", "run.max_staleness",
)  # fmt: skip
"""Keys of an RL stage that what it has done hangs on: steps are trained again on what was stored, and what is stored
for later steps is as old as it was allowed to be."""


def own_recipe(recipe: Recipe, directory: Path) -> str:
    """As it stands in a run's directory: without secrets, and with what was brought along named from there, wherever
    that is."""
    return to_yaml(recipe, secrets.hidden).replace(f"{directory}/{INPUTS}/", f"{INPUTS}/")


def refuse_changes(recipe: Recipe, directory: Path) -> None:
    """Raises `CheckpointMismatch` if an RL stage that has begun in `directory` is to go on with another value of a
    lasting key than it has in the run's own recipe."""
    run = storage_of(directory)
    if not run.exists(FILE):
        return
    before = yaml.safe_load(run.read(FILE))
    now = yaml.safe_load(own_recipe(recipe, directory))
    for prefix, place in _stages(recipe, directory).items():
        for key in LASTING if storage_of(place).exists(manifests.FOLDER) else ():
            was, wanted = _value(before, prefix + key), _value(now, prefix + key)
            if was != wanted:
                raise CheckpointMismatch(
                    f"{prefix}{key} was {was} when {place} began, and is {wanted} now: what has been done there hangs "
                    "on it. Resume without that change, or start a new run."
                )


def _stages(recipe: Recipe, directory: Path) -> dict[str, Path]:
    """Where each stage's keys are in the recipe, and where it lies."""
    if isinstance(recipe, PipelineRecipe):
        return {f"stages.{name}.": directory / "stages" / name for name in recipe.stages}
    return {"": directory}


def _value(recipe: Mapping[str, Any], key: str) -> Any:
    return reduce(lambda section, part: (section or {}).get(part), key.split("."), recipe)


def finished(directory: Path) -> bool:
    """Whether the stage completed, and its result is there."""
    storage = storage_of(directory)
    found, _ = events.read(storage)
    ended = [event for event in found if event["kind"] in ("run_started", "run_finished")]
    made = any(storage.exists(part) for part in (*RESULTS, comparison.FILE))
    return bool(ended) and ended[-1].get("status") == "completed" and made


def bring(directory: Path) -> None:
    """The results of a finished stage, from the object store that its directory stands for, to where later stages look
    for them."""
    if remote.url_of(directory) is None:
        return
    for part in RESULTS:
        if remote.storage_of(directory).exists(part) and not remote.same(directory, part):
            remote.fetch(directory, part)
