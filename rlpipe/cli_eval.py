"""`rlpipe eval`. As in `cli`, nothing heavy up here."""

from pathlib import Path
from typing import Annotated

import typer

from rlpipe.cli_runs import Debug, RunDir, place, refuse_used, start
from rlpipe.terminal import mistakes_told, stop


def evaluate(
    named: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE | MODEL...",
            help="A recipe of `task: eval`, or models: run directories, folders or hub ids, each also as NAME=MODEL. "
            "Then changes to the recipe, KEY=VALUE.",
        ),
    ],
    data: Annotated[
        str | None, typer.Option("--data", metavar="FILE", help="Ask all records of this file, folder or hub data set.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="RUN",
            help="Ask and judge as this run did on its held-out data: its data, rewards, environment, rollout and "
            "evaluation.  [default: the last of the models that is a run with rewards]",
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="NAME", help="Compare with this one.  [default: the first]")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", metavar="NAME", help="Measure KL and perplexity under this one.")
    ] = None,
    regression: Annotated[
        list[str] | None,
        typer.Option(
            "--regression",
            metavar="METRIC=LOSS",
            help="End with exit code 1 where a model loses more than that to the baseline: accuracy=0.02.",
        ),
    ] = None,
    debug: Debug = False,
    run_dir: RunDir = None,
) -> None:
    """Ask several models the same prompts, and compare them.

    With a recipe of `task: eval`, or with models alone: then a recipe is made of the options, and stands in the run
    directory as recipe.yaml. Names of models are those of their runs, or NAME in NAME=MODEL. An adapter's folder stands
    for its base with that adapter.

    A table with intervals is printed at the end. The run directory holds comparison.json (all numbers), answers.parquet
    (every answer) and comparison.html (side by side). `rlpipe resume` goes on with one that ended early; models that
    have answered are not asked again.

    \b
    Metrics of --regression, and of `regressions:` in a recipe:
      accuracy, pass@K, reward, reward/NAME    how much lower than the baseline's it may be
      win_rate                                 how much lower than 1/2
      refusals, failure_rate, reference_kl, perplexity
                                               how much higher than the baseline's
      A loss counts where it is more than that by more than chance: p < `level` (0.05) in a one-sided paired test of
      that, over all metrics and models together (Holm).

    \b
    Exit codes:
      0    done, and no model is worse than it may be
      1    a model is worse than it may be, or the run failed
      2    a mistake in the recipe or on the command line

    \b
    Examples:
      rlpipe eval arithmetic/eval
      rlpipe eval runs/arithmetic-sft runs/arithmetic-grpo
      rlpipe eval base=runs/arithmetic-sft/base runs/arithmetic-sft runs/arithmetic-grpo --reference base
      rlpipe eval runs/a runs/b --data test.jsonl --like runs/a evaluation.prompts=500
      rlpipe eval runs/old runs/new --regression accuracy=0.02 --debug rollout.engine=transformers
    """
    options = {"data": data, "like": like, "baseline": baseline, "reference": reference, "regression": regression}
    with mistakes_told():
        from rlpipe.recipe.load import read, require_files

        if _is_recipe(named[0]):
            _refuse_options(options)
            loaded = read(named[0], named[1:])
        else:
            loaded = _made(named, options)
        recipe = require_files(loaded)
        if recipe.task != "eval":
            stop(f"{named[0]} is a recipe of task {recipe.task}; `rlpipe run {named[0]}` runs it")
        directory = place(run_dir or f"runs/{recipe.name}")
        refuse_used(directory, "eval", _again(named, options, debug))
        start(recipe, directory, debug)


def _is_recipe(text: str) -> bool:
    from rlpipe.recipe.shipped import names

    return text.endswith((".yaml", ".yml")) or (text.removesuffix(".yaml") in names() and not Path(text).is_dir())


def _refuse_options(options: dict[str, object]) -> None:
    given = next((name for name, value in options.items() if value), None)
    if given is not None:
        stop(f"--{given} is for models without a recipe; in one it is a key, which KEY=VALUE changes")


def _made(named: list[str], options: dict[str, object]) -> object:
    """The recipe that the options stand for."""
    from rlpipe.pipelines.evaluating.asked import Options, Unclear, split, values
    from rlpipe.recipe.load import made

    models, changes = split(named)
    try:
        asked = Options(**{**options, "regression": tuple(options["regression"] or ())})
        return made(values(models, asked), changes)
    except Unclear as error:
        stop(str(error))


def _again(named: list[str], options: dict[str, object], debug: bool) -> list[str]:
    """The same words, for another directory."""
    words = list(named)
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value] if value else []:
            words += [f"--{name}", str(each)]
    return [*words, *(["--debug"] if debug else [])]
