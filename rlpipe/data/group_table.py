"""Scored groups as an Arrow table, one row per response, and back. `observe.rollouts` explains the columns.

Nothing that training needs is lost on the way: numbers keep their bits. The prompt itself is not in the table beyond
what people want to read; who reads groups back has the prompts and finds each by its id.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from rlpipe.data.flow import (
    Episode,
    Failure,
    FinishReason,
    Group,
    Outcome,
    Prompt,
    Said,
    Score,
    Trajectory,
    VersionSpan,
)

REWARD = "reward/"
"""Before the name of a component of the mix."""

_TURNS = pa.list_(pa.struct([("role", pa.string()), ("text", pa.string()), ("note", pa.string())]))
_VERSIONS = pa.list_(pa.struct([("first_token", pa.int32()), ("version", pa.int64())]))
_EPISODE = pa.struct([("starts", pa.list_(pa.int32())), ("ends", pa.list_(pa.int32())), ("outcome", pa.string())])


def columns_of(groups: Sequence[Group], rewards: Sequence[str]) -> dict[str, pa.Array]:
    """`rewards` are the names of the mix's components (`RewardStage.names`), so that every table of a run has the same
    columns."""
    trajectories = [t for group in groups for t in group.trajectories]
    outcomes = [o for group in groups for o in group.outcomes]
    return {
        "group_id": text(t.group_id for t in trajectories),
        "prompt_id": text(t.prompt_id for t in trajectories),
        "sample_index": pa.array([t.sample_index for t in trajectories], pa.int32()),
        "prompt": text(group.prompt.text for group in groups for _ in group.trajectories),
        "completion": text(said for group in groups for said in group.completions),
        "turns": pa.array([turns for group in groups for turns in _turns(group)], _TURNS),
        "columns": text(said for group in groups for said in [_json(group.prompt.columns)] * len(group.trajectories)),
        "prompt_tokens": _lists(trajectories, lambda t: t.prompt_tokens, np.int32),
        "response_tokens": _lists(trajectories, lambda t: t.response_tokens, np.int32),
        "response_mask": _lists(trajectories, lambda t: t.response_mask, np.int8),
        "behaviour_logprobs": _lists(trajectories, lambda t: t.behaviour_logprobs, np.float32),
        "versions": pa.array([[span._asdict() for span in t.versions] for t in trajectories], _VERSIONS),
        "episode": pa.array([_episode_row(t.episode) for t in trajectories], _EPISODE),
        "finish_reason": text(t.finish_reason.value for t in trajectories),
        **_outcome_columns(outcomes, rewards),
    }


def groups_of(table: pa.Table, prompt: Callable[[str], Prompt]) -> list[Group]:
    """The groups whose `columns_of` the table has, in its order. `prompt` finds a prompt by its id."""
    return [_group(list(rows), prompt) for _, rows in groupby(_rows(table), key=lambda row: row["group_id"])]


def text(values: Iterable[str | None]) -> pa.Array:
    return pa.array(list(values), pa.string())


def _outcome_columns(outcomes: Sequence[Outcome], rewards: Sequence[str]) -> dict[str, pa.Array]:
    scores = [o if isinstance(o, Score) else None for o in outcomes]
    failures = [o if isinstance(o, Failure) else None for o in outcomes]
    components = {
        f"{REWARD}{name}": pa.array([s.components.get(name) if s else None for s in scores], pa.float64())
        for name in rewards
    }
    return {
        "reward": pa.array([s.value if s else None for s in scores], pa.float64()),
        **components,
        "details": text(s.details or None if s else None for s in scores),
        "failure_kind": text(f.kind if f else None for f in failures),
        "failure_message": text(f.message if f else None for f in failures),
    }


def _turns(group: Group) -> list[list[dict[str, str]] | None]:
    """Per response."""
    if not group.conversations:
        return [None] * len(group.trajectories)
    return [[asdict(said) for said in turns] for turns in group.conversations]


def _episode_row(episode: Episode | None) -> dict[str, Any] | None:
    if episode is None:
        return None
    outcome = None if episode.outcome is None else json.dumps(asdict(episode.outcome))
    return {"starts": episode.starts, "ends": episode.ends, "outcome": outcome}


def _lists(trajectories: Sequence[Trajectory], field: Callable[[Trajectory], np.ndarray], dtype: type) -> pa.Array:
    """A list column from flat arrays, without a Python object per token."""
    arrays = [np.asarray(field(t), dtype) for t in trajectories]
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate(arrays) if arrays else np.empty(0, dtype))


def _json(columns: dict[str, Any]) -> str:
    return json.dumps(columns, ensure_ascii=False, default=str)


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows with token columns as arrays, without a Python object per token."""
    numeric = [c.name for c in table.schema if pa.types.is_list(c.type) and pa.types.is_primitive(c.type.value_type)]
    arrays = {name: _arrays(table[name].combine_chunks()) for name in numeric}
    for i, row in enumerate(table.drop_columns(numeric).to_pylist()):
        yield row | {name: each[i] for name, each in arrays.items()}


def _arrays(column: pa.ListArray) -> list[np.ndarray]:
    offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
    return [values[start:end] for start, end in pairwise(offsets)]


def _group(rows: list[dict[str, Any]], prompt: Callable[[str], Prompt]) -> Group:
    return Group(
        group_id=rows[0]["group_id"],
        prompt=prompt(rows[0]["prompt_id"]),
        trajectories=tuple(map(_trajectory, rows)),
        completions=tuple(row["completion"] for row in rows),
        outcomes=tuple(map(_outcome, rows)),
        conversations=() if rows[0]["turns"] is None else tuple(map(_said, rows)),
    )


def _trajectory(row: dict[str, Any]) -> Trajectory:
    own = ("group_id", "prompt_id", "sample_index", "prompt_tokens", "response_tokens", "response_mask")
    return Trajectory(
        **{name: row[name] for name in own},
        behaviour_logprobs=row["behaviour_logprobs"],
        versions=tuple(VersionSpan(**span) for span in row["versions"]),
        finish_reason=FinishReason(row["finish_reason"]),
        episode=_episode(row),
    )


def _outcome(row: dict[str, Any]) -> Outcome:
    if row["reward"] is None:
        return Failure(row["failure_kind"], row["failure_message"])
    said = {name.removeprefix(REWARD): row[name] for name in row if name.startswith(REWARD)}
    components = {name: value for name, value in said.items() if value is not None}
    return Score(row["reward"], components, row.get("details") or "")  # runs from before judges lack the column


def _said(row: dict[str, Any]) -> tuple[Said, ...]:
    return tuple(Said(**turn) for turn in row["turns"])


def _episode(row: dict[str, Any]) -> Episode | None:
    """Every second message of the conversation is the environment's."""
    if (stored := row["episode"]) is None:
        return None
    outcome = None if stored["outcome"] is None else _either(json.loads(stored["outcome"]))
    return Episode(tuple(stored["starts"]), tuple(stored["ends"]), _said(row)[1::2], outcome)


def _either(fields: dict[str, Any]) -> Outcome:
    return Score(**fields) if "value" in fields else Failure(**fields)
