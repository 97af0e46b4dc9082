"""What the models of an evaluation have answered, on disk as soon as one of them is done: `answers/NAME.parquet`; and
how probable it finds that itself, `answers/NAME.own.parquet`, and the reference, `answers/NAME.reference.parquet`.

A file carries the digest of everything that it hangs on: it is of use as long as that is the same.
"""

import hashlib
import io
from collections.abc import Sequence
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
_LOGPROBS = "logprobs"
_JUDGED = pa.schema([("win", pa.float64()), ("details", pa.string()), ("failure", pa.string())])

Logprobs = list[list[np.ndarray]]
"""By prompt and sample, of each token that the model wrote; float32."""


class Book:
    """The files."""

    def __init__(self, storage: Storage, rewards: Sequence[str]) -> None:
        self._storage, self._rewards = storage, rewards

    def answers(self, model: Served) -> Answered | None:
        """None where it has not answered yet, or was asked something else."""
        table = self._read(model.name, model.key)
        if table is None:
            return None
        prompts = {prompt.prompt_id: prompt for prompt in model.prompts[1]}
        groups = groups_of(table, prompts.__getitem__)
        greedy = [group for group in groups if group.group_id.startswith("evaluation/greedy/")]
        return Answered(greedy, groups[len(greedy) :])

    def keep(self, model: Served, answered: Answered) -> None:
        """Whole, or not at all."""
        groups = [*answered.greedy, *answered.sampled]
        self._write(model.name, model.key, pa.table(columns_of(groups, self._rewards)))

    def logprobs(self, model: Served, reader: Served, answered: Answered) -> Logprobs | None:
        """Of its sampled answers, at temperature 1, under the reader: the reference, or the model itself. None where
        that one was not asked yet."""
        table = self._read(_read_by(model, reader), _together(model, reader, answered))
        return None if table is None else _by_prompt(_lists(table, _LOGPROBS), answered.sampled)

    def keep_logprobs(self, model: Served, reader: Served, answered: Answered, found: Logprobs) -> None:
        values = pa.array([each for samples in found for each in samples], pa.list_(pa.float32()))
        self._write(_read_by(model, reader), _together(model, reader, answered), pa.table({_LOGPROBS: values}))

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


def _read_by(model: Served, reader: Served) -> str:
    return f"{model.name}.{'own' if model is reader else 'reference'}"


def _together(model: Served, reader: Served, answered: Answered) -> str:
    """Of the very tokens, too: a model that is asked again may say something else."""
    said = hashlib.blake2b(digest_size=16)
    for trajectory in (t for group in answered.sampled for t in group.trajectories):
        said.update(trajectory.response_tokens.tobytes() + b"/")
    return f"{model.key}/{reader.key}/{said.hexdigest()}"


def _lists(table: pa.Table, column: str) -> list[np.ndarray]:
    return [np.asarray(row, np.float32) for row in table[column].to_pylist()]


def _by_prompt(rows: list[np.ndarray], groups: Sequence[Group]) -> Logprobs:
    left = iter(rows)
    return [[next(left) for _ in group.trajectories] for group in groups]
