"""A labelling stage: prompts are answered, answers are judged, and what comes of it is written."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

from rlpipe.data.flow import Group, Prompt
from rlpipe.data.remote import storage_of
from rlpipe.observe import events
from rlpipe.observe.progress import duration
from rlpipe.pipelines import episodes
from rlpipe.pipelines.fitting import that_fit
from rlpipe.pipelines.judges import template_of
from rlpipe.pipelines.labelling import keys
from rlpipe.pipelines.labelling.asking import Tell, settle
from rlpipe.pipelines.labelling.findings import Findings, find
from rlpipe.pipelines.labelling.judging import judging
from rlpipe.pipelines.labelling.preferences import Maker
from rlpipe.pipelines.labelling.responding import responding
from rlpipe.pipelines.labelling.store import Store
from rlpipe.pipelines.labelling.writing import digest, write
from rlpipe.pipelines.stage import LABELS, Stage
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.labelling import LabelRecipe, Labels, SampledResponses
from rlpipe.rewards.judging.usage import Usage

logger = logging.getLogger(__name__)

TRAIN, HELDOUT = "train", "heldout"


def run_label(stage: Stage, recipe: LabelRecipe) -> None:
    """Label `recipe`'s prompts in `stage`; the result lies in `labels/`."""
    judge = _comparing(recipe)  # what is wrong with a template is told before anything is asked
    parts = _prompts(stage, recipe)
    with stage.events.phase("respond", says=_says(recipe, parts)):
        answered = _respond(stage, recipe, parts)
    with stage.events.phase("judge", says="judging responses"):
        labelled = _judge(stage, recipe, answered)
    with stage.events.phase("save", says="writing labels"):
        _write(stage, recipe, labelled, judge, {part: len(prompts) for part, prompts in parts.items()})


def _comparing(recipe: LabelRecipe) -> str | None:
    """The reward that compares responses, the first where there are several; None where all are graded."""
    judges = [reward for reward in recipe.rewards.mix if isinstance(reward, JudgeReward)]
    return next((reward.name for reward in judges if template_of(reward).compares), None)


def _prompts(stage: Stage, recipe: LabelRecipe) -> dict[str, list[Prompt]]:
    """By part, each prompt once."""
    train, heldout = stage.prompts
    if isinstance(recipe.responses, SampledResponses):
        train, heldout = (that_fit(prompts, recipe.rollout, stage) for prompts in stage.prompts)
    counts = {TRAIN: (train, recipe.labels.prompts or len(train)), HELDOUT: (heldout, recipe.labels.heldout)}
    parts = {
        part: keys.asked(stage, recipe, prompts[:count], part) for part, (prompts, count) in counts.items() if count
    }
    twice = sum(min(len(prompts), count) for prompts, count in counts.values()) - sum(map(len, parts.values()))
    if twice:
        stage.events.note(f"{twice} prompts stand twice in the data; each is labelled once.")
    return parts


def _says(recipe: LabelRecipe, parts: Mapping[str, list[Prompt]]) -> str:
    count = sum(map(len, parts.values()))
    if recipe.responses.kind == "read":
        return f"reading the responses to {count} prompts"
    return f"{recipe.responses.count} responses to each of {count} prompts"


def _respond(stage: Stage, recipe: LabelRecipe, parts: Mapping[str, list[Prompt]]) -> dict[str, list[Group]]:
    """The prompts' groups, in their order, not judged yet."""
    prompts = [prompt for part in parts.values() for prompt in part]
    store = Store(stage.storage, "responses", [], episodes.longest_episode(stage))
    found = settle(
        store,
        prompts,
        partial(responding, stage, recipe, prompts),
        recipe.labels.prompts_per_commit,
        _telling(stage, "answered"),
    )
    return {part: [found[p.prompt_id] for p in asked if p.prompt_id in found] for part, asked in parts.items()}


def _judge(stage: Stage, recipe: LabelRecipe, parts: Mapping[str, list[Group]]) -> dict[str, list[Group]]:
    """The groups with their outcomes; those of which no response could be judged are left out."""
    keyed = {part: keys.judged(recipe, groups) for part, groups in parts.items()}
    groups = {group.prompt.prompt_id: group for part in keyed.values() for group in part}
    store = Store(stage.storage, "judged", [r.name for r in recipe.rewards.mix], recipe.deadlines.reward)
    found = settle(
        store,
        [group.prompt for group in groups.values()],
        partial(judging, stage, recipe, groups),
        recipe.labels.prompts_per_commit,
        _telling(stage, "judged"),
    )
    return {
        part: [found[g.prompt.prompt_id] for g in asked if g.prompt.prompt_id in found] for part, asked in keyed.items()
    }


def _telling(stage: Stage, what: str) -> Tell:
    began = time.monotonic()
    done_here = 0

    def tell(groups: Sequence[Group], done: int, total: int) -> None:
        nonlocal done_here
        done_here += len(groups)
        left = (total - done) * (time.monotonic() - began) / done_here
        stage.events.progress(f"{done}/{total} prompts {what}" + (f", {duration(left)} left" if done < total else ""))

    return tell


def _write(
    stage: Stage,
    recipe: LabelRecipe,
    parts: Mapping[str, list[Group]],
    judge: str | None,
    asked: Mapping[str, int],
) -> None:
    """`asked`: how many prompts there are, by part."""
    labels = recipe.labels
    found = {part: find(g, judge, labels.gold, labels.tie_within, asked[part]) for part, g in parts.items()}
    spent = _spent(stage)
    before = digest(stage.directory / LABELS)
    written = write(stage.directory / LABELS, recipe, parts, Maker(labels, judge, stage.records.system), found, spent)
    if before not in (None, digest(stage.directory / LABELS)):
        logger.warning("The labels have changed. What was trained on them before stays: train in a new run directory.")
    _warn_of_nothing(stage.directory / LABELS, labels)
    for part, one in found.items():
        stage.events.note(f"{part}: {_says_findings(one)}; {written[part]}")
    for name, usage in spent.items():
        stage.events.note(f"judge `{name}`, in all: {usage}")


def _spent(stage: Stage) -> dict[str, Usage]:
    """What judges behind endpoints took, in all sittings of this run directory, by the name of their reward."""
    stage.events.flush()
    found: dict[str, Usage] = {}
    for event in events.read(storage_of(stage.directory))[0]:
        if event["kind"] == "usage":
            taken = Usage(**{field.name: event[field.name] for field in fields(Usage)})
            found[event["reward"]] = found.get(event["reward"], Usage()) + taken
    return found


def _warn_of_nothing(folder: Path, labels: Labels) -> None:
    """What a later stage would miss."""
    reasons = {
        "best": f"no response was worth labels.accept_at={labels.accept_at}",
        "preferences": f"no prompt has two responses that differ by more than labels.tie_within={labels.tie_within:g}",
    }
    for kind, why in reasons.items():
        if not (folder / kind / f"{TRAIN}.{labels.format}").exists():
            logger.warning("labels/%s has no training rows: %s.", kind, why)


def _says_findings(found: Findings) -> str:
    failed = "".join(f", {count} failed ({kind})" for kind, count in found.failures.items())
    numbers = "".join(f", {name} {value:.3f}" for name, value in found.metrics.items())
    lost = f", {found.left_out} prompts left out, as none of their responses could be judged" if found.left_out else ""
    return f"{found.responses} responses to {found.prompts} prompts judged{failed}{lost}{numbers}"
