"""Every trajectory of a run as Parquet, one file per step: `pandas.read_parquet("runs/x/rollouts")` opens them all,
and so does `datasets.load_dataset("parquet", data_files="runs/x/rollouts/*.parquet")`.

One row per response:

    step, epoch, group_id, prompt_id, sample_index
    prompt, completion              text; the prompt as the chat template rendered it
    turns                           [{role, text, note}]: the response as messages, from the policy's first turn on;
                                    with an environment, `completion` is the last of them; null without one
    columns                         the row's other columns, as JSON
    prompt_tokens, response_tokens  token ids
    response_mask                   1 where the policy wrote the token, 0 where an environment did
    behaviour_logprobs              nats, as the engine sampled, one per response token
    versions                        [{first_token, version}]: which weights wrote from which response token on
    episode                         {starts, ends, outcome}: the response tokens at which the policy's turns begin and
                                    end, and as JSON the environment's own reward; null without an environment
    finish_reason                   stop, length, abort, turns (the environment would have gone on)
    reward                          null where it failed
    reward/NAME                     each component of the mix, unweighted; null where it failed or did not apply
    details                         what judges were asked and answered, as JSON by component; null without a judge
    failure_kind, failure_message   null where the reward could be computed
    advantage                       0 in a group that was not learned from; null where it is not known
    fate, reason                    trained, failed or dropped, and why: see `Fate`

These files are the ledger's memory of what was trained: a group stands in `ledger/` from its completion to the commit
of its step, and here from then on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlpipe.data.flow import Group
from rlpipe.data.group_table import columns_of, text
from rlpipe.data.storage import Storage

FOLDER = "rollouts"


class Damaged(RuntimeError):
    """The file of a step is not what was written."""


class Fate(StrEnum):
    """What became of a group in its step."""

    TRAINED = "trained"
    FAILED = "failed"
    """It was in the batch, but not one of its rewards could be computed: it left no gradient."""
    DROPPED = "dropped"
    """Dynamic sampling replaced it before training."""


@dataclass(frozen=True, slots=True)
class Record:
    """A group of a step. `reason` says why its fate is not `TRAINED`."""

    group: Group
    epoch: int
    advantages: Sequence[float | None]
    """One per response."""
    fate: Fate = Fate.TRAINED
    reason: str = ""


def name_of(step: int) -> str:
    """The file of a step in the run directory."""
    return f"{FOLDER}/step-{step:06d}.parquet"


def write(storage: Storage, step: int, records: Sequence[Record], rewards: Sequence[str]) -> str:
    """Write one step, whole or not at all; returns the file's name in the run directory.

    `rewards` are the names of the mix's components (`RewardStage.names`), so that every file has the same columns.
    """
    storage.write(name_of(step), encoded(step, records, rewards))
    return name_of(step)


def encoded(step: int, records: Sequence[Record], rewards: Sequence[str]) -> bytes:
    """The file of a step."""
    table = _table(step, records, rewards)
    sink = pa.BufferOutputStream()
    texts = [column.name for column in table.schema if pa.types.is_string(column.type)]
    # Numbers hardly repeat: without a dictionary for them it is twice as fast.
    pq.write_table(table, sink, compression="zstd", use_dictionary=texts, write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def steps(storage: Storage) -> list[int]:
    """The steps that have a file, in order."""
    names = storage.names(f"{FOLDER}/step-*.parquet")
    return [int(name.removeprefix(f"{FOLDER}/step-").removesuffix(".parquet")) for name in names]


def table(storage: Storage, step: int, columns: Sequence[str] | None = None) -> pa.Table:
    """One step, or these columns of it. Raises FileNotFoundError, and `Damaged`."""
    with storage.open(name_of(step)) as file:
        try:
            return pq.read_table(file, columns=columns, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise Damaged(f"{storage}/{name_of(step)} is damaged: {error}") from error


def read(storage: Storage, step: int) -> list[dict[str, Any]]:
    """The rows of one step."""
    return table(storage, step).to_pylist()


def _table(step: int, records: Sequence[Record], rewards: Sequence[str]) -> pa.Table:
    of_row = [record for record in records for _ in record.group.trajectories]
    columns = {
        "step": pa.array([step] * len(of_row), pa.int64()),
        "epoch": pa.array([record.epoch for record in of_row], pa.int64()),
        **columns_of([record.group for record in records], rewards),
        "advantage": pa.array([a for record in records for a in record.advantages], pa.float64()),
        "fate": text(record.fate.value for record in of_row),
        "reason": text(record.reason or None for record in of_row),
    }
    return pa.table(columns)
