"""How fast is one GRPO step: rlpipe, TRL, and the floor under both, in one run on one machine.

    python benchmarks/grpo_step.py --help

What is measured and how to read it: benchmarks/README.md.
"""

import sys
from pathlib import Path
from typing import Annotated

from typer import Option

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from step import contest, options, startup, tables, work  # noqa: E402
from step import overlap as overlapped  # noqa: E402
from step.contestant import ContestantFailed  # noqa: E402
from step.measure import Measured, Plan, measure  # noqa: E402
from step.report import Report  # noqa: E402
from step.tables import Grid  # noqa: E402

app = options.application()


@app.command()
def main(
    case: Annotated[str, Option(help="short (256 samples of 16 tokens), long (64 of 128), or both.")] = "both",
    engine: options.Engine = "both",
    steps: options.Steps = 5,
    patience: options.Patience = 60.0,
    with_startup: Annotated[bool, Option("--startup/--no-startup", help="Measure how long starting takes.")] = True,
    other_trl: Annotated[bool, Option(help="Also TRL's static cache and continuous batching, slower by far.")] = False,
    overlap: Annotated[
        bool, Option("--overlap", help="Only this: steps that sample one version ahead, against steps that do not.")
    ] = False,
    delay: Annotated[
        list[float],
        Option(help="With --overlap: only the engine that is far away, with so many ms a token; repeat it for more."),
    ] = [],  # noqa: B006
    quick: options.Quick = False,
    out: options.Out = options.RESULTS,
    keep: options.Keep = None,
) -> None:
    """Time one GRPO step of rlpipe against TRL's GRPOTrainer and against the floor: pure generation plus a bare torch
    training step, with the same model, prompts, group size, lengths, cores and seeds.

    Prints medians, the ratios TRL / rlpipe and rlpipe / floor for each engine and length, what our step has on top of
    the floor part by part, and what starting up is made of. Contestants step in turn, so that whatever else the machine
    does hits all alike; steps that other processes disturbed do not count as long as enough others remain.

    \b
    python benchmarks/grpo_step.py            everything
    python benchmarks/grpo_step.py --quick    a shrunk run: does all of it work?
    python benchmarks/grpo_step.py --case short --engine transformers --no-startup
    python benchmarks/grpo_step.py --overlap
    """
    engines, lengths = (
        options.chosen(engine, options.ENGINES, "--engine"),
        options.chosen(case, options.LENGTHS, "--case"),
    )
    cases = [c for c in (work.GRPO_QUICK if quick else work.GRPO_CASES) if c.name in lengths]
    plan = Plan(engines, 1 if quick else steps, 0 if quick else 2, 0.0 if quick else patience)
    grpo = contest.grpo(engines, other_trl)
    with options.work_folder(keep) as folder:
        model = folder / "model"
        work.build_model(model)
        if overlap:
            delays = [milliseconds / 1e3 for milliseconds in delay]
            found = overlapped.measure(grpo, cases, plan, model, folder, options.say, delays)
            options.show_grid("grpo_overlap", found, out)
            return
        results = [measure(grpo, c, plan, model, folder, options.say) for c in cases]
        starting = _startup(results, model, folder) if with_startup else []
    options.show(Report("grpo_step", "One GRPO step", engines, results, starting), out)


def _startup(results: list[Measured], model: Path, folder: Path) -> list[Grid]:
    """What starting is made of: of the runs just measured, of the demo, and of each part alone."""
    options.say("start-up: the demo, then each part alone")
    title = "`rlpipe run` to the end of the first step"
    found = [tables.startup(f"{m.case.name}: {title}", m.startup) for m in results if m.startup]
    try:
        found.append(tables.startup("The demo, to its first training steps", startup.demo(folder / "demo")))
        found.append(tables.startup("Each part started alone", startup.pieces(model)))
    except ContestantFailed as error:
        options.say(f"start-up: {error}")
    return found


if __name__ == "__main__":
    options.run(app)
