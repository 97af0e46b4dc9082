"""`rlpipe replay`: the comparison on the screen, and the exit code."""

import bdb

from rich.console import Console

from rlpipe.observe.compared import table, verdict
from rlpipe.pipelines.replay import NoReplay, Request, replay
from rlpipe.pipelines.run import INTERRUPTED, TOLD, quiet
from rlpipe.recipe.tasks import Recipe
from rlpipe.runtime.tracebacks import shown_cleanly

EQUAL, DIFFERENT, IMPOSSIBLE = 0, 1, 2


def compare(recipe: Recipe, request: Request, tolerance: float) -> int:
    """Returns the process's exit code."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    quiet()
    try:
        with shown_cleanly():
            steps = replay(recipe, request, console)
    except (KeyboardInterrupt, bdb.BdbQuit):
        console.print("Stopped.")
        return INTERRUPTED
    except (NoReplay, *TOLD) as error:
        console.print(f"rlpipe: {error}", style="red")
        return IMPOSSIBLE
    pairs = steps[request.step]
    console.print(table(pairs, tolerance))
    console.print(f"\nstep {request.step}: {verdict(pairs, tolerance)}")
    apart = [step for step, found in steps.items() if not all(pair.close(tolerance) for pair in found)]
    if apart and apart[0] != request.step:
        console.print(f"step {apart[0]} is the first that differs: {verdict(steps[apart[0]], tolerance)}")
    return EQUAL if all(pair.close(tolerance) for pair in pairs) else DIFFERENT
