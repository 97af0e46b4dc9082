"""Batch arithmetic: what a step holds, how it divides, and what would divide better."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from math import ceil, gcd
from pathlib import Path

from rlpipe.plan.lengths import Lengths, micro_batches_of_rl, sequences_of_step, sequences_per_record
from rlpipe.recipe.data import GuessNumberData, RecordsData
from rlpipe.recipe.tasks import OfflineRecipe, RlRecipe, StageRecipe


@dataclass(frozen=True, slots=True)
class Batches:
    """What a task does in how many pieces."""

    lines: dict[str, str]
    """What there is, and how it comes about, for people."""
    numbers: dict[str, float]
    """The same for tools."""
    uneven: tuple[str, ...]
    """What does not divide, and the nearest values that do."""


def of(recipe: StageRecipe, lengths: Lengths | None) -> Batches:
    """Of one task; `lengths` are those of RL."""
    if isinstance(recipe, RlRecipe) and lengths is not None:
        return _of_rl(recipe, lengths)
    return _of_offline(recipe)


def _of_rl(recipe: RlRecipe, lengths: Lengths) -> Batches:
    schedule, train, group = recipe.schedule, recipe.train, recipe.algorithm.group_size
    trajectories = schedule.prompts_per_step * group
    updates = train.minibatches * train.epochs
    micro, mine = micro_batches_of_rl(recipe, lengths), sequences_of_step(recipe)
    prompts = schedule.steps * schedule.prompts_per_step
    records = records_of(recipe.data)
    lines = {
        "prompts": f"{schedule.prompts_per_step:,} a step, {prompts:,} in {schedule.steps:,} steps"
        + _epochs(prompts, records),
        "trajectories": f"{trajectories:,} a step: {schedule.prompts_per_step:,} groups of {group}",
        "optimizer steps": f"{updates:,} a step ({train.minibatches} minibatches x {train.epochs} epochs), "
        f"{updates * schedule.steps:,} in all",
        "each of them": f"{trajectories // train.minibatches:,} trajectories, {mine:,} on each of {train.ranks} ranks, "
        f"in {micro} micro-batches of up to {train.tokens_per_micro_batch:,} positions",
        "sequences": f"{lengths.prompt:,} tokens of prompt + up to {lengths.response:,} of response",
    }  # fmt: skip
    numbers = {
        "prompts_per_step": schedule.prompts_per_step,
        "prompts": prompts,
        "trajectories_per_step": trajectories,
        "optimizer_steps_per_step": updates,
        "optimizer_steps": updates * schedule.steps,
        "trajectories_per_optimizer_step": trajectories // train.minibatches,
        "trajectories_per_rank": mine,
        "micro_batches": micro,
        **({"epochs": prompts / records} if records else {}),
    }
    return Batches(lines, numbers, tuple(_uneven_rl(recipe, records)))


def _epochs(seen: int, records: int | None) -> str:
    return f": {seen / records:.2f} epochs of {records:,}" if records else ""


def _uneven_rl(recipe: RlRecipe, records: int | None) -> Iterable[str]:
    schedule, train, group = recipe.schedule, recipe.train, recipe.algorithm.group_size
    per_update = schedule.prompts_per_step // train.minibatches * group
    near = partial(_nearest, "schedule.prompts_per_step", schedule.prompts_per_step)
    if per_update % train.ranks:
        step = train.minibatches * train.ranks // gcd(group, train.ranks)
        yield (
            f"{per_update} trajectories of an optimizer step do not divide into train.ranks={train.ranks}: some ranks "
            f"get one more and the others wait; {near(step)}"
        )
    together, all_of_them = recipe.rollout.engines * recipe.rollout.max_num_seqs, schedule.prompts_per_step * group
    if all_of_them > together and all_of_them % together:
        full = together // gcd(together, group)
        yield (
            f"{all_of_them} trajectories do not fill the {together} places of the engines a whole number of times: the "
            f"last {all_of_them % together} run alone; {near(full)}"
        )
    if recipe.rollout.engines > schedule.prompts_per_step:
        yield (
            f"rollout.engines={recipe.rollout.engines} is more than schedule.prompts_per_step="
            f"{schedule.prompts_per_step}: a group stays on one engine, so that some have nothing to do"
        )
    elif schedule.prompts_per_step % recipe.rollout.engines:
        engines = recipe.rollout.engines
        yield f"{schedule.prompts_per_step} groups do not divide into rollout.engines={engines}; {near(engines)}"
    if records and schedule.prompts_per_step > records:
        yield f"schedule.prompts_per_step={schedule.prompts_per_step} is more than the {records} prompts there are"
    yield from _unsaved(schedule.steps, train.save_steps)


def _unsaved(steps: int | None, every: int | None) -> Iterable[str]:
    if steps and every and every > steps:
        yield f"train.save_steps={every} is more than the {steps} steps there are: no checkpoint before the last"


def _nearest(key: str, value: int, step: int) -> str:
    """The multiples of `step` around a value."""
    below, above = value // step * step, -(-value // step) * step
    return f"{key}={below} or {above} would" if below else f"{key}={above} would"


def _of_offline(recipe: OfflineRecipe) -> Batches:
    train = recipe.train
    micro = train.per_device_train_batch_size * train.ranks
    batch = micro * train.gradient_accumulation_steps
    records = records_of(recipe.data)
    steps = train.max_steps
    if steps is None and records:
        each = max(1, -(-(records // micro) // train.gradient_accumulation_steps))
        steps = ceil(train.num_train_epochs * each)
    sequences = sequences_per_record(recipe)
    lines = {
        "optimizer step": f"{batch:,} records: {train.per_device_train_batch_size} x {train.ranks} ranks x "
        f"{train.gradient_accumulation_steps} micro-batches",
        "micro-batch": f"{train.per_device_train_batch_size * sequences:,} sequences of up to {train.max_length:,} "
        "tokens",
        "optimizer steps": f"{steps:,}" if steps else f"{train.num_train_epochs:g} epochs of data that was not counted",
    }
    if steps:
        lines["records"] = f"{steps * batch:,}" + _epochs(steps * batch, records)
    numbers = {"records_per_optimizer_step": batch, "micro_batches": train.gradient_accumulation_steps} | (
        {"optimizer_steps": steps, "records": steps * batch} if steps else {}
    ) | ({"epochs": steps * batch / records} if steps and records else {})  # fmt: skip
    return Batches(lines, numbers, tuple(_uneven_offline(recipe, records, micro, batch, steps)))


def _uneven_offline(
    recipe: OfflineRecipe, records: int | None, micro: int, batch: int, steps: int | None
) -> Iterable[str]:
    train = recipe.train
    if records and records < micro:
        yield (
            f"{records} records are fewer than one batch of {micro} over all ranks; lower "
            "train.per_device_train_batch_size or train.ranks"
        )
    elif records and records // micro % train.gradient_accumulation_steps and train.num_train_epochs:
        short = records // micro % train.gradient_accumulation_steps
        yield (
            f"{records} records do not divide into optimizer steps of {batch}: the last step of each epoch has {short} "
            f"of {train.gradient_accumulation_steps} micro-batches; {_nearest('records', records, batch)}"
        )
    yield from _unsaved(steps, train.save_steps)


def records_of(data: object) -> int | None:
    """How many records there are to train on; None where only reading them would tell."""
    match data:
        case GuessNumberData():
            return data.games
        case RecordsData():
            return _lines(data)
    return None


def _lines(data: RecordsData) -> int | None:
    """Of a file with a record a line."""
    file = Path(data.path).expanduser()
    if file.suffix not in (".jsonl", ".ndjson") or not file.is_file():
        return None
    with file.open("rb") as opened:
        count = sum(1 for line in opened if line.strip())
    return max(0, count - data.heldout.count) if data.heldout.path is None and data.heldout.split is None else count
