"""What `rlpipe ledger` prints."""

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from rlpipe.data.storage import Storage
from rlpipe.ledger import history
from rlpipe.ledger.book import LedgerError
from rlpipe.ledger.history import Settled, StepTotals
from rlpipe.ledger.manifests import FOLDER
from rlpipe.ledger.standing import STATES, InFlight, Standing, standing
from rlpipe.observe.rollouts import Damaged

UNREADABLE = (LedgerError, Damaged)
"""What a ledger that cannot be read raises."""


def show(console: Console, run: Storage, steps: int) -> bool:
    """Of each stage that has a ledger: prompts by state and epoch, and the last `steps` steps. False without any."""
    return _each(run, lambda found, past: _show_counts(console, found, past, steps), console)


def show_prompt(console: Console, run: Storage, prompt_id: str) -> bool:
    """What happened to one prompt, in each stage that has a ledger. False without any."""
    return _each(run, lambda found, past: _show_prompt(console, found, past, prompt_id), console)


def _each(run: Storage, show_one: Callable[[Standing, history.History], None], console: Console) -> bool:
    folders = [name.removesuffix(f"/{FOLDER}") for name in run.names(f"stages/*/{FOLDER}")]
    found = {name: (storage := run.folder(name), standing(storage)) for name in folders}
    found = found or {"": (run, standing(run))}
    for name, (storage, stands) in found.items():
        if stands is None:
            return False
        if name:
            console.print(name)
        with history.opened(storage, stands.step) as past:
            show_one(stands, past)
    return True


def _show_counts(console: Console, found: Standing, past: history.History, steps: int) -> None:
    writer, cursor = found.writer, found.cursor
    console.print(
        f"{found.step} steps committed; the cursor has given out {cursor['position']} prompts of epoch "
        f"{cursor['epoch']}; last writer: process {writer['process']} on {writer['host']}\n"
    )
    console.print(_states(found))
    if totals := past.totals(steps):
        console.print()
        console.print(_steps(totals))


def _states(found: Standing) -> Table:
    table = _table("epoch", *STATES)
    for epoch, counts in found.by_epoch.items():
        table.add_row(str(epoch), *(str(counts[state]) for state in STATES))
    if len(found.by_epoch) != 1:
        table.add_row("all", *(str(found.totals[state]) for state in STATES))
    return table


def _steps(totals: list[StepTotals]) -> Table:
    table = _table("step", "trained", "failed", "dropped", "responses", "without reward", "reward")
    for step in totals:
        numbers = (step.step, step.trained, step.failed, step.dropped, step.responses, step.failures)
        table.add_row(*map(str, numbers), _reward(step.reward))
    return table


def _show_prompt(console: Console, found: Standing, past: history.History, prompt_id: str) -> None:
    settled = past.of_prompt(prompt_id)
    waiting = [prompt for prompt in found.in_flight if prompt.prompt_id == prompt_id]
    for line in [*map(_settled, settled), *map(_waiting, waiting)]:
        console.print(line)
    if not settled and not waiting:
        console.print(f"{prompt_id}: not handed out until now, or no prompt of this run")


def _settled(group: Settled) -> str:
    text = (
        f"epoch {group.epoch}  {group.fate} in step {group.step}, group {group.group_id}: {group.responses} responses"
    )
    text += f", {group.failures} without reward" if group.failures else ""
    text += f", mean reward {_reward(group.reward)}" if group.reward is not None else ""
    return f"{text} ({group.reason})" if group.reason else text


def _waiting(prompt: InFlight) -> str:
    said = {
        "pending": f"pending: nobody works on it; leased {prompt.leases} times so far",
        "leased": f"leased as {prompt.group_id}, for another {prompt.seconds:.0f} s",
        "completed": f"completed as group {prompt.group_id}, waiting for its step",
    }
    return f"epoch {prompt.epoch}  {said[prompt.state]}"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _reward(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
