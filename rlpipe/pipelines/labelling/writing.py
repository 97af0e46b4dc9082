"""The files of a labelling stage: whole or not at all."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlpipe.data.flow import Group
from rlpipe.data.guidance import asked_of
from rlpipe.data.judge_questions import transcript
from rlpipe.data.near_duplicates import near_duplicates, overlaps
from rlpipe.pipelines.labelling.card import card
from rlpipe.pipelines.labelling.findings import Findings
from rlpipe.pipelines.labelling.preferences import Maker, Row, judged
from rlpipe.recipe.labelling import LabelRecipe
from rlpipe.rewards.judging.usage import Usage

CARD = "README.md"
KINDS = {"preferences": Maker.preferences, "unpaired": Maker.unpaired, "best": Maker.best}
SHOWN = 3
"""Prompts that are named of those that stand twice."""


def write(
    folder: Path,
    recipe: LabelRecipe,
    parts: Mapping[str, list[Group]],
    maker: Maker,
    found: Mapping[str, Findings],
    spent: Mapping[str, Usage],
) -> dict[str, str]:
    """All files into `folder`, in place of what is there; for people, what each part has become. `spent`: what judges
    behind endpoints took."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    maker.look_at(group for groups in parts.values() for group in groups)
    files: dict[str, dict[str, tuple[str, int]]] = {}
    for kind, make in KINDS.items():
        for part, groups in parts.items():
            rows = [row for group in groups for row in make(maker, group)]
            if rows:
                name = f"{part}.{recipe.labels.format}"
                _write_rows(partial / kind / name, rows)
                files.setdefault(kind, {})[part] = (name, len(rows))
    for part, groups in parts.items():
        if rows := list(_judgements(groups)):
            _write_rows(partial / "judgements" / f"{part}.parquet", rows)
            files.setdefault("judgements", {})[part] = (f"{part}.parquet", len(rows))
    partial.mkdir(parents=True, exist_ok=True)
    (partial / CARD).write_text(card(recipe, files, found, list(_twice(parts)), spent), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return {part: _says(part, files) for part in parts}


def digest(folder: Path) -> str | None:
    """Of all files but the card, which tells of sittings, too; None where there is no folder."""
    if not folder.is_dir():
        return None
    found = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CARD):
        found.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return found.hexdigest()


def _says(part: str, files: Mapping[str, Mapping[str, tuple[str, int]]]) -> str:
    return ", ".join(f"{of[part][1]} {kind}" for kind, of in files.items() if part in of) or "nothing to learn from"


def _write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        names = dict.fromkeys(name for row in rows for name in row)  # a row may lack what another one has
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
        return
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _judgements(groups: Iterable[Group]) -> Iterator[dict[str, Any]]:
    """Each pair of responses once, by every judge that compared them."""
    for group in groups:
        for one in judged(group):
            for name, said in one.details.items():
                about = {key: said.get(key) for key in ("judge", "template", "principle", "seed")}
                for row in said.get("comparisons", []):
                    if one.index < row["other"] and "same" not in row:
                        yield _judgement(group, name, about, one.index, row)


def _judgement(group: Group, name: str, about: dict[str, Any], first: int, row: dict[str, Any]) -> dict[str, Any]:
    keys = ("better", "as_first", "as_second", "mass")
    return {
        "prompt_id": group.prompt.prompt_id,
        "prompt": _read(group),
        "first": group.completions[first],
        "second": group.completions[row["other"]],
        "reward": name,
        **{key: row.get(key) for key in keys},
        "failures": row.get("failures", []),
        **about,
    }


def _read(group: Group) -> str:
    """The prompt as a judge reads it."""
    return transcript(asked_of(group.prompt))


def _twice(parts: Mapping[str, list[Group]]) -> Iterator[str]:
    """In words: which prompts resemble others."""
    texts = {part: [_read(group) for group in groups] for part, groups in parts.items()}
    for part, each in texts.items():
        if pairs := near_duplicates(each):
            named = "; ".join(f"{each[i]!r:.80} like {each[j]!r:.80}" for i, j in pairs[:SHOWN])
            yield f"- {len(pairs)} of {len(each)} prompts in `{part}` resemble an earlier one: {named}"
    if "heldout" in texts and "train" in texts and (pairs := overlaps(texts["heldout"], texts["train"])):
        named = "; ".join(f"{texts['heldout'][i]!r:.80} like {texts['train'][j]!r:.80}" for i, j in pairs[:SHOWN])
        yield f"- {len(pairs)} of {len(texts['heldout'])} held-out prompts resemble a training prompt: {named}"
