"""The data card beside the labels: what is in them, who made them and how far they can be trusted. Hugging Face's
format, so that `datasets.load_dataset(FOLDER, "preferences")` finds the files."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from rlpipe.pipelines.labelling.findings import MEANINGS, Findings
from rlpipe.recipe.labelling import LabelRecipe
from rlpipe.rewards.judging.usage import Usage

_USES = {
    "preferences": "a chosen and a rejected response to a prompt: DPO and its relatives, reward models",
    "unpaired": "single responses that are good or bad: KTO",
    "best": "the best response to each prompt: SFT (best-of-n, rejection sampling)",
    "judgements": "each comparison that a judge made, in both orders",
}


def card(
    recipe: LabelRecipe,
    files: Mapping[str, Mapping[str, tuple[str, int]]],
    found: Mapping[str, Findings],
    duplicates: Sequence[str],
    spent: Mapping[str, Usage],
) -> str:
    """`files` by kind and part: name and number of rows; `found` by part; `duplicates` are sentences; `spent` by the
    name of a judge's reward."""
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(_about(recipe, files), sort_keys=False)}---",
            f"# {recipe.name}",
            "Made by rlpipe (`task: label`). Every row's `provenance` says by whom it was judged, by what, and how.",
            "\n## What is here\n",
            *_table(["files", "rows", "for"], _listed(files)),
            "\n## Where it comes from\n",
            *_sources(recipe, found),
            "\n## How far it can be trusted\n",
            *_quality(found),
            *(["\n## What the judges took\n", *_took(spent)] if spent else []),
            "\n## Twice, or nearly\n",
            *(duplicates or ["No prompt resembles another one, and no held-out prompt a training prompt."]),
            "\n## Licences\n",
            "To be filled in by whoever passes this on: of the prompts, of the model that responded (some forbid the",
            "training of other models on what they write), of the judge, and of this set as a whole (`license` above).",
            "",
        ]
    )


def _about(recipe: LabelRecipe, files: Mapping[str, Mapping[str, tuple[str, int]]]) -> dict[str, Any]:
    configs = [
        {
            "config_name": kind,
            "data_files": [{"split": part, "path": f"{kind}/{name}"} for part, (name, _) in parts.items()],
        }
        for kind, parts in files.items()
    ]
    return {"pretty_name": recipe.name, "license": "unknown", "tags": ["rlpipe", "synthetic"], "configs": configs}


def _listed(files: Mapping[str, Mapping[str, tuple[str, int]]]) -> list[list[str]]:
    rows = []
    for kind, parts in files.items():
        for name, count in parts.values():
            rows.append([f"`{kind}/{name}`", f"{count:,}", _USES[kind]])
    return rows


def _sources(recipe: LabelRecipe, found: Mapping[str, Findings]) -> list[str]:
    part = next(iter(found.values()))
    data, model = recipe.data.model_dump(), recipe.model.model_dump()
    where = data.get("path") or data["kind"]
    said = [
        f"- prompts: {where}",
        f"- responses: {_responses(recipe)} ({model.get('path') or 'a model from scratch'})",
        *(f"- judge `{name}`: {who}" for name, who in part.judges.items()),
        *(f"- reward `{reward.name}` ({reward.kind}), weight {reward.weight:g}" for reward in recipe.rewards.mix),
    ]
    if part.principles:
        said += ["- principles, and the prompts judged by each:"]
        said += [f"  - {name}: {count}" for name, count in part.principles.items()]
    return said


def _responses(recipe: LabelRecipe) -> str:
    if recipe.responses.kind == "read":
        return f"read from {', '.join(recipe.responses.columns)}"
    return f"{recipe.responses.count} to each prompt, at temperature {recipe.rollout.temperature:g}"


def _quality(found: Mapping[str, Findings]) -> list[str]:
    names = [name for name in MEANINGS if any(name in part.metrics for part in found.values())]
    rows = [[name, *(_number(p.metrics.get(name)) for p in found.values()), MEANINGS[name]] for name in names]
    rows += [["prompts", *(f"{part.prompts:,}" for part in found.values()), ""]]
    if any(part.left_out for part in found.values()):
        why = "prompts of which no response could be judged; not counted below"
        rows += [["left out", *(f"{part.left_out:,}" for part in found.values()), why]]
    rows += [["responses", *(f"{part.responses:,}" for part in found.values()), ""]]
    rows += [["cut off", *(f"{part.cut:,}" for part in found.values()), "ended at `rollout.max_new_tokens`"]]
    rows += [["without text", *(f"{part.empty:,}" for part in found.values()), "in no record"]]
    rows += [["asked in both orders", *(f"{part.asked_twice:,}" for part in found.values()), "pairs"]]
    for kind in dict.fromkeys(kind for part in found.values() for kind in part.failures):
        rows += [[f"failed: {kind}", *(f"{p.failures.get(kind, 0):,}" for p in found.values()), "in no label"]]
    gold = [] if any("agreement/accuracy" in part.metrics for part in found.values()) else [
        "There are no gold labels (`labels.gold`) to compare with: nothing here says whether the judge is right."
    ]  # fmt: skip
    return [*_table(["", *found, ""], rows), *gold]


def _took(spent: Mapping[str, Usage]) -> list[str]:
    """In all sittings, labels that were asked again and failures among them."""
    rows = [
        [name, *(f"{n:,}" for n in (u.requests, u.retries, u.prompt_tokens, u.completion_tokens)), f"{u.cost:.4g}"]
        for name, u in spent.items()
    ]
    unmetered = [
        f"{u.unmetered:,} answers of `{name}` came without counts of tokens: tokens and cost are too low."
        for name, u in spent.items()
        if u.unmetered
    ]
    return [*_table(["judge", "requests", "of them repeats", "tokens asked", "answered", "cost"], rows), *unmetered]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
