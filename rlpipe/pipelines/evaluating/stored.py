"""What the models of an evaluation have answered, on disk as soon as one of them is done: `answers/NAME.parquet`, and
what the reference thinks of it, `answers/NAME.reference.parquet`.

A file carries the digest of everything that it hangs on: it is of use as long as that is the same.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rlpipe.data.flow import Group
from rlpipe.data.group_table import columns_of, groups_of
from rlpipe.data.storage import Storage
from rlpipe.pipelines.evaluating.served import Served
from rlpipe.pipelines.evaluation import Answered

FOLDER = "answers"
_KEY = b"rlpipe.key"
_OWN = "own_logprobs"
_REFERENCE = "reference_logprobs"
_JUDGED = pa.schema([("win", pa.float64()), ("details", pa.string()), ("failure", pa.string())])
_HANGS_ON = {
    "seed", "models", "data", "part", "rewards", "environment", "evaluation",
    "rollout.engine", "rollout.max_new_tokens", "rollout.max_model_len", "rollout.stop_token_ids",
}  # fmt: skip

Logprobs = list[list[np.ndarray]]
"""By prompt and sample, of each token that the model wrote; float32."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One model's answers."""

    answered: Answered
    own: Logprobs
    """Of the sampled answers, under the model itself, at temperature 1; empty where there is no reference."""


class Book:
    """The files."""

    def __init__(self, storage: Storage, rewards: Sequence[str]) -> None:
        self._storage, self._rewards = storage, rewards

    def answers(self, model: Served) -> Stored | None:
        """None where it has not answered yet, or was asked something else."""
        table = self._read(model.name, key_of(model))
        if table is None:
            return None
        prompts = {prompt.prompt_id: prompt for prompt in model.prompts[1]}
        own = _lists(table, _OWN)
        groups = groups_of(table.drop_columns([_OWN]), prompts.__getitem__)
        greedy = [group for group in groups if group.group_id.startswith("evaluation/greedy/")]
        sampled = groups[len(greedy) :]
        return Stored(Answered(greedy, sampled), _by_prompt(own[len(greedy) :], sampled))

    def keep(self, model: Served, stored: Stored) -> None:
        """Whole, or not at all."""
        groups = [*stored.answered.greedy, *stored.answered.sampled]
        own = [np.empty(0, np.float32) for _ in stored.answered.greedy]
        own += [values for samples in stored.own for values in samples] if stored.own else [
            np.empty(0, np.float32) for group in stored.answered.sampled for _ in group.trajectories
        ]  # fmt: skip
        table = pa.table({**columns_of(groups, self._rewards), _OWN: pa.array(own, pa.list_(pa.float32()))})
        self._write(model.name, key_of(model), table)

    def under_reference(self, model: Served, reference: Served, stored: Stored) -> Logprobs | None:
        """The same of the reference; None where it was not asked yet."""
        if model is reference:  # it has said so itself
            return stored.own
        table = self._read(f"{model.name}.reference", _together(model, reference))
        return None if table is None else _by_prompt(_lists(table, _REFERENCE), stored.answered.sampled)

    def keep_under_reference(self, model: Served, reference: Served, found: Logprobs) -> None:
        values = pa.array([each for samples in found for each in samples], pa.list_(pa.float32()))
        self._write(f"{model.name}.reference", _together(model, reference), pa.table({_REFERENCE: values}))

    def judged(self, model: Served, key: str) -> list[dict[str, Any]] | None:
        """What a judge said of it beside the baseline, by prompt: win, details, failure."""
        table = self._read(f"{model.name}.judge", key)
        return None if table is None else table.to_pylist()

    def keep_judged(self, model: Served, key: str, rows: list[dict[str, Any]]) -> None:
        self._write(f"{model.name}.judge", key, pa.Table.from_pylist(rows, _JUDGED))

    def _read(self, name: str, key: str) -> pa.Table | None:
        file = f"{FOLDER}/{name}.parquet"
        if not self._storage.exists(file):
            return None
        table = pq.read_table(io.BytesIO(self._storage.read(file)), page_checksum_verification=True)
        return table if (table.schema.metadata or {}).get(_KEY) == key.encode() else None

    def _write(self, name: str, key: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata({_KEY: key}), sink, compression="zstd", write_page_checksum=True)
        self._storage.write(f"{FOLDER}/{name}.parquet", sink.getvalue().to_pybytes())


def key_of(model: Served) -> str:
    """Of everything that its answers and their scores hang on, its files among that."""
    recipe = model.recipe.model_dump()
    sections = {key.partition(".")[0] for key in _HANGS_ON}
    kept = {section: recipe[section] for section in sections - {"rollout"}}
    kept["rollout"] = {
        key.partition(".")[2]: recipe["rollout"][key.partition(".")[2]] for key in _HANGS_ON if "." in key
    }
    kept["measures_kl"] = model.recipe.reference is not None
    folders = [Path(model.model_path), *([model.adapter] if model.adapter else [])]
    text = json.dumps([kept, [files_of(folder) for folder in folders]], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _together(model: Served, reference: Served) -> str:
    return f"{key_of(model)}/{key_of(reference)}"


def files_of(folder: Path) -> list[tuple[str, int, int]]:
    """The weights in a folder of this machine: a model that was trained anew is another one."""
    found = sorted(folder.expanduser().glob("*.safetensors"))
    return [(file.name, (about := file.stat()).st_size, about.st_mtime_ns) for file in found]


def _lists(table: pa.Table, column: str) -> list[np.ndarray]:
    return [np.asarray(row, np.float32) for row in table[column].to_pylist()]


def _by_prompt(rows: list[np.ndarray], groups: Sequence[Group]) -> Logprobs:
    left = iter(rows)
    return [[next(left) for _ in group.trajectories] for group in groups]
