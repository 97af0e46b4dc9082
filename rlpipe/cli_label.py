"""The verb that labels. As in `cli`, nothing heavy up here."""

from pathlib import Path
from typing import TYPE_CHECKING

from rlpipe.cli_runs import Changes, Debug, RecipeArgument, RunDir, place, start, unreachable_told
from rlpipe.terminal import mistakes_told, stop

if TYPE_CHECKING:
    from rlpipe.recipe.tasks import Recipe


def label(
    recipe: RecipeArgument,
    changes: Changes = None,
    debug: Debug = False,
    run_dir: RunDir = None,
) -> None:
    """Have responses judged: preferences to learn from, and more. Good and bad responses, and the best ones.

    The recipe (`task: label`, or a pipeline with such a stage) says whose responses to which prompts, and who judges
    them: a language model of this run or behind an endpoint, a reward model, a function of yours. In the run directory,
    labels/README.md is the data card, with what is known of the labels' quality.

    Called again with the same run directory it goes on where it was stopped. What was asked is not asked again: after a
    principle, a template or some of the data were edited, only what that concerns is.

    \b
    Examples:
      rlpipe label my_labels.yaml
      rlpipe label my_labels.yaml labels.prompts=100 --debug      a first look
      rlpipe run arithmetic/rlaif                                 labels, and training on them
    """
    with mistakes_told():
        from rlpipe.recipe.load import read, require_files

        checked = require_files(read(recipe, changes or ()))
        _require_labels(checked, recipe)
        directory = place(run_dir or f"runs/{checked.name}")
        _refuse_others(directory, checked)
        start(checked, directory, debug)


def _require_labels(recipe: "Recipe", named: str) -> None:
    from rlpipe.recipe.tasks import PipelineRecipe

    tasks = [task.task for task in recipe.stages.values()] if isinstance(recipe, PipelineRecipe) else [recipe.task]
    if "label" not in tasks:
        stop(f"{named} labels nothing, as its task is {recipe.task}; to run it: rlpipe run {named}")


def _refuse_others(directory: Path | str, recipe: "Recipe") -> None:
    """What was made by another recipe stays."""
    import yaml

    from rlpipe.data.remote import storage_of, work_folder

    with unreachable_told():
        run = storage_of(work_folder(directory))
        before = yaml.safe_load(run.read("recipe.yaml")) if run.exists("recipe.yaml") else None
    if before and (before["task"], before["name"]) != (recipe.task, recipe.name):
        stop(
            f"{directory} holds a run of another recipe ({before['name']}, task {before['task']}), which stays; choose "
            "another directory: --run-dir"
        )
