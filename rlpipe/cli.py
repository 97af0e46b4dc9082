"""The command line: verbs only. Each parses, calls one function, and prints.

Nothing heavy is imported up here: `--help` and a mistake in a recipe answer at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from rlpipe import (
    __version__,
    cli_debug,
    cli_eval,
    cli_inspect,
    cli_jobs,
    cli_label,
    cli_models,
    cli_plan,
    cli_runs,
    cli_supervise,
)
from rlpipe.cli_runs import Changes, RecipeArgument
from rlpipe.terminal import mistakes_told, say, stop

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # they print local variables, and hide the line a debugger would stop at
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
recipes_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes")
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"rlpipe {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Post-training for language models from one recipe: SFT, reward models, PPO, GRPO and relatives on Ray, DeepSpeed
    and vLLM, the same on a laptop CPU, one machine, or a cluster.

    \b
    Start here:
      rlpipe doctor                    see whether everything it needs works here
      rlpipe recipes list              see the recipes that come with it
      rlpipe run arithmetic/pipeline   train a small model: SFT, then GRPO
      rlpipe plan gsm8k/grpo --gpus 8x80GB   see what a run takes, and whether it fits, before it starts
      rlpipe resume runs/NAME          go on with a run that was stopped, killed, or failed
      rlpipe label my.yaml             have responses judged: preferences to learn from
      rlpipe submit my.yaml            run it on a Ray cluster; jobs, status, logs, attach, stop
      rlpipe study FILE                compare: a recipe over a grid of changes
      rlpipe eval runs/a runs/b        compare: models on the same prompts, with intervals and tests
      rlpipe recipes copy arithmetic/grpo my.yaml   begin a recipe of your own
      rlpipe chat runs/NAME            try the result; `export` and `merge` take it elsewhere
      rlpipe ledger runs/NAME          see what became of every prompt of an RL run
      rlpipe replay runs/NAME STEP     train a step again, and compare its numbers; `run --debug` stops at breakpoint()
      rlpipe data check train.jsonl    look at data of your own before a run does

    \b
    Exit codes:
      0    done
      1    the run failed, `eval` found a model worse than it may be, or `doctor` or `data check` what would stop a run
      2    a mistake in the recipe or on the command line; nothing was trained
      130  stopped with Ctrl-C, or with q in the debugger
    """


for verb in (cli_plan.plan, cli_runs.run, cli_runs.resume, cli_label.label, cli_jobs.submit):
    app.command()(verb)
for verb in (cli_jobs.jobs, cli_jobs.logs, cli_jobs.status, cli_jobs.stop, cli_jobs.attach, cli_supervise.supervise):
    app.command()(verb)


app.command("eval")(cli_eval.evaluate)


@app.command()
def study(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="A study file, or the name of a shipped study: studies/algorithms.")
    ],
    changes: Changes = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The study's folder.  [default: runs/NAME, by the study's `name`]")
    ] = None,
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="How many cells run at once.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every cell, say what would run, and stop.")] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Run nothing; write tables and curves again from what is there.")
    ] = False,
) -> None:
    """Compare: run a recipe over a grid of changes. Each cell is a run of its own.

    A row goes to results.csv when a cell has finished. Called again, it skips finished cells and starts the others
    again; a cell whose recipe has changed since runs again, too. A cell that fails stops no other. At the end
    study.md holds the table, study.svg the plot, and curves.csv every metric over time.

    \b
    A study file:
      name: rates
      recipe: arithmetic/sft
      changes: [train.max_steps=60]
      grid:
        train.optimizer.learning_rate: [3e-4, 1e-3]     a key of the recipe, and its values
        width:                                          or a name, and changes by label
          narrow: [model.hidden_size=128, model.heads=4]
          wide: [model.hidden_size=256]
        seed: [0, 1, 2]
      repeat_over: seed
      debug: true

    \b
    Examples:
      rlpipe study rates.yaml --dry-run
      rlpipe study rates.yaml
      rlpipe study rates.yaml train.max_steps=20 --out runs/short --parallel 2
      rlpipe recipes copy studies/algorithms mine.yaml
    """
    from rlpipe.pipelines.study.folder import FolderTaken

    with mistakes_told():
        from rlpipe.recipe.errors import RecipeError
        from rlpipe.recipe.study_file import read
        from rlpipe.recipe.study_plan import plan

        planned = plan(read(study), changes or ())
        if planned.missing and not (dry_run or report_only):
            raise RecipeError(planned.missing)
    from rlpipe.pipelines.study import run as studies

    folder = out or Path("runs") / planned.study.name
    try:
        if dry_run:
            for problem in planned.missing:
                say("warning: ", typer.colors.YELLOW, problem)
            typer.echo(studies.told(planned, folder))
            raise typer.Exit
        if report_only:
            raise typer.Exit(studies.report(planned, folder, typer.echo))
        raise typer.Exit(studies.run(planned, folder, parallel, typer.echo))
    except FolderTaken as error:
        stop(str(error))


@app.command()
def validate(recipe: RecipeArgument, changes: Changes = None) -> None:
    """Check a recipe without running it.

    Every mistake is told at once, with file, line, key and what to write instead. Local files that are not on this
    machine are warnings here, and errors when it runs.

    \b
    Examples:
      rlpipe validate my.yaml
      rlpipe validate arithmetic/grpo schedule.steps=20
    """
    with mistakes_told():
        from rlpipe.recipe.load import read

        loaded = read(recipe, changes or ())
    for problem in loaded.missing:
        say("warning: ", typer.colors.YELLOW, problem)
    typer.echo(f"{recipe} is valid (task {loaded.recipe.task}); it would run in runs/{loaded.recipe.name}")


@app.command()
def schema(
    study: Annotated[bool, typer.Option("--study", help="Of study files instead of recipes.")] = False,
    constitution: Annotated[bool, typer.Option("--constitution", help="Of constitutions instead of recipes.")] = False,
) -> None:
    """Print the JSON Schema of recipes, for editors.

    An editor with a YAML language server then completes and checks recipes that begin with the second line:

    \b
    Example:
      rlpipe schema > rlpipe.schema.json
      # yaml-language-server: $schema=rlpipe.schema.json
      rlpipe schema --study > study.schema.json
      rlpipe schema --constitution > constitution.schema.json
    """
    import json

    from rlpipe.recipe import schema as schemas

    if study and constitution:
        stop("--study and --constitution are two schemas; ask for one")
    kind = schemas.study_json_schema if study else schemas.constitution_json_schema if constitution else None
    typer.echo(json.dumps((kind or schemas.json_schema)(), indent=2, ensure_ascii=False))


@app.command()
def doctor() -> None:
    """See whether everything it needs works here.

    Checks Python, the compiler, packages, accelerators, memory and disk, and says how to mend what does not work. Exits
    with 1 when the main path cannot run.
    """
    from rlpipe.runtime import doctor as checks_of

    checks = checks_of.diagnose()
    typer.echo(checks_of.render(checks))
    raise typer.Exit(checks_of.worst(checks))


for verb in (cli_inspect.report, cli_inspect.ledger, cli_debug.replay):
    app.command()(verb)
for verb in (cli_models.chat, cli_models.merge, cli_models.export):
    app.command()(verb)


@recipes_app.callback()
def recipes() -> None:
    """See and copy the recipes that come with rlpipe."""


@recipes_app.command("list")
def list_recipes() -> None:
    """Print every shipped recipe's name, and what it does. Studies, for `rlpipe study`, come last."""
    from rlpipe.recipe.shipped import headline, names, studies

    width = max(map(len, names() + studies()))
    for name in names() + studies():
        typer.echo(f"{name:<{width}}  {headline(name)}")


@recipes_app.command("show")
def show_recipe(name: Annotated[str, typer.Argument(metavar="NAME", help="As `recipes list` prints it.")]) -> None:
    """Print a shipped recipe or study with its explanation.

    \b
    Example:
      rlpipe recipes show arithmetic/grpo
    """
    with mistakes_told():
        from rlpipe.recipe.shipped import path_of

        typer.echo(path_of(name).read_text(encoding="utf-8"), nl=False)


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `recipes list` prints it.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A file (my.yaml) or a folder.")],
) -> None:
    """Copy a shipped recipe or study to begin one of your own.

    Files beside it that it needs are copied too. Nothing is ever overwritten.

    \b
    Example:
      rlpipe recipes copy arithmetic/grpo my.yaml
    """
    with mistakes_told():
        from rlpipe.recipe.copying import copy

        copied = copy(name, destination)
    for path in copied.kept:
        typer.echo(f"kept   {path} (was there already)")
    for path in copied.written:
        typer.echo(f"wrote  {path}")


@data_app.callback()
def data() -> None:
    """Look at data before a run does."""


@data_app.command("check")
def check_data(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="JSON lines, JSON, CSV or Parquet (also .gz), a folder, or a hub id.")
    ],
    heldout: Annotated[str | None, typer.Option("--heldout", help="The held-out file, to be compared with it.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Folder or hub id: count tokens, and try the chat template.")
    ] = None,
    format: Annotated[
        str, typer.Option("--format", help="As data.format in a recipe: auto, trl, alpaca, sharegpt or hh.")
    ] = "auto",
    columns: Annotated[
        str, typer.Option("--columns", help="As data.columns in a recipe: prompt=question,completion=answer.")
    ] = "",
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=1, help="Tell of sequences with more tokens; needs --model.")
    ] = None,
    near: Annotated[
        bool, typer.Option("--near", help="Look for texts that are nearly the same, too (MinHash of three-word runs).")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Name every row, not the first three of a kind.")] = False,
) -> None:
    """Check data: what would stop a run, or spoil it.

    Format, lengths, duplicates, leaks into the held-out records, pairs, labels, roles, chat template.

    What is wrong is told with file, row and field. Errors would stop a run or spoil it, and end with exit code 1;
    warnings alone end with 0.

    \b
    Examples:
      rlpipe data check train.jsonl
      rlpipe data check train.jsonl --heldout test.jsonl --near
      rlpipe data check train.jsonl --model Qwen/Qwen2.5-0.5B-Instruct --max-length 1024
      rlpipe data check gsm8k.jsonl --columns prompt=question,completion=answer
      rlpipe data check dialogues.jsonl.gz --format hh
    """
    from rlpipe.data.records import DataError

    if max_length and not model:
        stop("--max-length counts tokens, which needs a tokenizer: --model FOLDER")
    try:
        from rlpipe.pipelines.data_check import check

        raise typer.Exit(check(file, heldout, model, format, columns, max_length, near, every))
    except DataError as error:
        stop(str(error))
