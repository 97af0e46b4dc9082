"""How fast is one PPO step with a critic and a reward model, against the floor under it, and what waits on what.

    python benchmarks/ppo_step.py --help

What is measured and how to read it: benchmarks/README.md.
"""

import sys
from pathlib import Path
from typing import Annotated

from typer import Option

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from step import contest, options, work  # noqa: E402
from step.measure import Plan, measure  # noqa: E402
from step.report import Report  # noqa: E402

app = options.application()


@app.command()
def main(
    case: Annotated[str, Option(help="short (256 samples of 16 tokens), long (64 of 128), or both.")] = "both",
    engine: options.Engine = "both",
    steps: options.Steps = 5,
    patience: options.Patience = 60.0,
    own_cores: Annotated[bool, Option(help="Policy and critic get one thread each instead of two.")] = False,
    quick: options.Quick = False,
    out: options.Out = options.RESULTS,
    keep: options.Keep = None,
) -> None:
    """Time one PPO step of rlpipe against the floor: generation, the forwards of reward model, reference, policy and
    critic, and the training steps of policy and critic, as bare loops, one after the other, with the same models,
    prompts, lengths and cores.

    Prints medians, the ratio rlpipe / floor for each engine and length, what our step has on top of the floor part by
    part, and a waterfall of one step: who works when, and what the driver waits for. Floor and rlpipe step in turn;
    steps that other processes disturbed do not count as long as enough others remain.

    \b
    python benchmarks/ppo_step.py            everything
    python benchmarks/ppo_step.py --quick    a shrunk run: does all of it work?
    python benchmarks/ppo_step.py --case short --engine transformers --own-cores
    """
    engines, lengths = (
        options.chosen(engine, options.ENGINES, "--engine"),
        options.chosen(case, options.LENGTHS, "--case"),
    )
    cases = [c for c in (work.PPO_QUICK if quick else work.PPO_CASES) if c.name in lengths]
    plan = Plan(engines, 1 if quick else steps, 0 if quick else 2, 0.0 if quick else patience)
    with options.work_folder(keep) as folder:
        model = folder / "model"
        work.build_model(model)
        work.build_classifier(model)
        ppo = contest.ppo(engines, work.classifier_of(model), own_cores)
        results = [measure(ppo, c, plan, model, folder, options.say) for c in cases]
    own = ", policy and critic on own cores" if own_cores else ""
    options.show(Report("ppo_step", f"One PPO step{own}", engines, results), out)


if __name__ == "__main__":
    options.run(app)
