"""Running a TRL job where the recipe says, until its result lies on disk."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpipe.models.load import ModelError, context_length
from rlpipe.pipelines import checkpoints
from rlpipe.pipelines.offline import trl_checkpoints
from rlpipe.pipelines.offline.failures import Launch
from rlpipe.pipelines.offline.progress import Report
from rlpipe.pipelines.offline.ray_train import run_local, run_remote
from rlpipe.pipelines.offline.restarts import to_the_end
from rlpipe.pipelines.offline.trl_worker import TrlJob, train
from rlpipe.pipelines.profiling import Steps
from rlpipe.pipelines.roles import hub_keys
from rlpipe.pipelines.stage import FINAL_ADAPTER
from rlpipe.recipe.adapter import virtual_tokens
from rlpipe.recipe.tasks import OfflineRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fields(
    recipe: OfflineRecipe, model_path: str, tokenizer: "PreTrainedTokenizerBase", output_dir: Path
) -> dict[str, Any]:
    """What a job of any task takes from its recipe. It goes on from the last checkpoint beside `output_dir`, if there
    is one."""
    directory = output_dir.resolve().parent
    checkpoint = checkpoints.newest(directory)
    if checkpoint is not None:
        trl_checkpoints.check(checkpoint, recipe.train)
    return {
        "model": recipe.model,
        "model_path": str(Path(model_path).resolve()) if Path(model_path).is_dir() else model_path,
        "tokenizer": tokenizer,
        "seed": recipe.seed,
        "timeout_seconds": recipe.deadlines.train,
        "output_dir": str(output_dir.resolve()),
        "adapter": recipe.adapter,
        "adapter_dir": str(directory / FINAL_ADAPTER),
        "directory": str(directory),
        "checkpoint": None if checkpoint is None else str(checkpoint),
    }


def longest_sequence(recipe: OfflineRecipe, model_path: str) -> int:
    """How many tokens of a record the model reads. Raises `ModelError` if virtual tokens leave no place for any."""
    context, virtual = context_length(recipe.model, model_path), virtual_tokens(recipe.adapter)
    if virtual >= context:
        raise ModelError(
            f"adapter.num_virtual_tokens={virtual} fills the context of {context} tokens of {model_path}; lower it"
        )
    return min(recipe.train.max_length, context - virtual)


def launch(
    name: str, recipe: OfflineRecipe, job: TrlJob, debug: bool, report: Report, profile: Steps | None = None
) -> None:
    """Train in this process (`debug`) or as ranks on the cluster, which start again from the last checkpoint if a
    process of theirs is lost. `name` is for people, `profile` says of which steps traces are written.

    Raises `ModelError`, `PlacementError`, `GivenUp` after too many losses, or `TrainingFailed` for the unforeseen.
    """
    training, job = recipe.train, replace(job, profile=profile)
    keys = hub_keys(job.model_path)
    what = Launch(name, training.ranks, training.resources, training.threads, recipe.deadlines, keys)
    if debug:
        run_local(train, job, what, report)
    else:
        to_the_end(name, job, lambda job, report: run_remote(train, job, what, report), report)
    if not job.result.exists():
        raise FileNotFoundError(
            f"Rank 0 wrote the result to {job.result.parent} on its own node, and this node does not see it. Put the "
            "run directory on storage that all nodes share."
        )
