"""Every trajectory of a run as Parquet, one file per step: `pandas.read_parquet("runs/x/rollouts")` opens them all,
and so does `datasets.load_dataset("parquet", data_files="runs/x/rollouts/*.parquet")`.

One row per response:

    step, group_id, prompt_id, sample_index
    prompt, completion              text; the prompt as the chat template rendered it
    turns                           [{role, text}]: the response as messages, from the policy's first turn on; with an
                                    environment, `completion` is the last of them; null without one
    columns                         the row's other columns, as JSON
    prompt_tokens, response_tokens  token ids
    response_mask                   1 where the policy wrote the token, 0 where an environment did
    behaviour_logprobs              nats, as the engine sampled, one per response token
    versions                        [{first_token, version}]: which weights wrote from which response token on
    finish_reason                   stop, length, abort, turns (the environment would have gone on)
    reward                          null where it failed
    reward/NAME                     each component of the mix, unweighted; null where it failed or did not apply
    failure_kind, failure_message   null where the reward could be computed
    advantage                       null where it is not known
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlpipe.data.flow import Failure, Group, Outcome, Score, Trajectory
from rlpipe.data.storage import Storage

FOLDER = "rollouts"
_TURNS = pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))
_VERSIONS = pa.list_(pa.struct([("first_token", pa.int32()), ("version", pa.int64())]))


def write(
    storage: Storage,
    step: int,
    groups: Sequence[Group],
    rewards: Sequence[str],
    advantages: Sequence[float] | None = None,
) -> str:
    """Write one step, whole or not at all; returns the file's name in the run directory.

    `rewards` are the names of the mix's components (`RewardStage.names`), so that every file has the same columns.
    `advantages`, where known, are one per response, in the order of the groups.
    """
    table = _table(step, groups, rewards, advantages)
    sink = pa.BufferOutputStream()
    texts = [column.name for column in table.schema if pa.types.is_string(column.type)]
    pq.write_table(table, sink, compression="zstd", use_dictionary=texts)  # numbers hardly repeat: twice as fast
    name = f"{FOLDER}/step-{step:06d}.parquet"
    storage.write(name, sink.getvalue().to_pybytes())
    return name


def steps(storage: Storage) -> list[int]:
    """The steps that have a file, in order."""
    names = storage.names(f"{FOLDER}/step-*.parquet")
    return [int(name.removeprefix(f"{FOLDER}/step-").removesuffix(".parquet")) for name in names]


def read(storage: Storage, step: int) -> list[dict[str, Any]]:
    """The rows of one step."""
    data = storage.read(f"{FOLDER}/step-{step:06d}.parquet")
    return pq.read_table(pa.BufferReader(data)).to_pylist()


def _table(step: int, groups: Sequence[Group], rewards: Sequence[str], advantages: Sequence[float] | None) -> pa.Table:
    trajectories = [t for group in groups for t in group.trajectories]
    outcomes = [o for group in groups for o in group.outcomes]
    count = len(trajectories)
    columns = {
        "step": pa.array([step] * count, pa.int64()),
        "group_id": _text(t.group_id for t in trajectories),
        "prompt_id": _text(t.prompt_id for t in trajectories),
        "sample_index": pa.array([t.sample_index for t in trajectories], pa.int32()),
        "prompt": _text(group.prompt.text for group in groups for _ in group.trajectories),
        "completion": _text(text for group in groups for text in group.completions),
        "turns": pa.array([turns for group in groups for turns in _turns(group)], _TURNS),
        "columns": _text(text for group in groups for text in [_json(group.prompt.columns)] * len(group.trajectories)),
        "prompt_tokens": _lists(trajectories, lambda t: t.prompt_tokens, np.int32),
        "response_tokens": _lists(trajectories, lambda t: t.response_tokens, np.int32),
        "response_mask": _lists(trajectories, lambda t: t.response_mask, np.int8),
        "behaviour_logprobs": _lists(trajectories, lambda t: t.behaviour_logprobs, np.float32),
        "versions": pa.array([[span._asdict() for span in t.versions] for t in trajectories], _VERSIONS),
        "finish_reason": _text(t.finish_reason.value for t in trajectories),
        **_outcome_columns(outcomes, rewards),
        "advantage": pa.array([None] * count if advantages is None else list(map(float, advantages)), pa.float64()),
    }
    return pa.table(columns)


def _outcome_columns(outcomes: Sequence[Outcome], rewards: Sequence[str]) -> dict[str, pa.Array]:
    scores = [o if isinstance(o, Score) else None for o in outcomes]
    failures = [o if isinstance(o, Failure) else None for o in outcomes]
    components = {
        f"reward/{name}": pa.array([s.components.get(name) if s else None for s in scores], pa.float64())
        for name in rewards
    }
    return {
        "reward": pa.array([s.value if s else None for s in scores], pa.float64()),
        **components,
        "failure_kind": _text(f.kind if f else None for f in failures),
        "failure_message": _text(f.message if f else None for f in failures),
    }


def _turns(group: Group) -> list[list[dict[str, str]] | None]:
    """Per response."""
    if not group.conversations:
        return [None] * len(group.trajectories)
    return [[asdict(said) for said in turns] for turns in group.conversations]


def _text(values: Iterable[str | None]) -> pa.Array:
    return pa.array(list(values), pa.string())


def _lists(trajectories: Sequence[Trajectory], field: Callable[[Trajectory], np.ndarray], dtype: type) -> pa.Array:
    """A list column from flat arrays, without a Python object per token."""
    arrays = [np.asarray(field(t), dtype) for t in trajectories]
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate(arrays) if arrays else np.empty(0, dtype))


def _json(columns: dict[str, Any]) -> str:
    return json.dumps(columns, ensure_ascii=False, default=str)
