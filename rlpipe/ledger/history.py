"""What became of every group of committed steps, for questions: an index in SQLite, made from the steps' own files.

It is never the truth. It lies in the ledger's folder where that is on a disk, takes in the steps that it does not have
yet when it is opened, and can be deleted at any time. The run itself does not touch it.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields

import pyarrow as pa

from rlpipe.data.storage import Storage
from rlpipe.ledger.manifests import FOLDER
from rlpipe.observe import rollouts

NAME = f"{FOLDER}/index.sqlite"


@dataclass(frozen=True, slots=True)
class Settled:
    """A group of a committed step. A reward is the mean over the responses that have one."""

    step: int
    place: int
    """In the step's file: first those trained on, in order, then those dropped."""
    epoch: int
    prompt_id: str
    group_id: str
    fate: str
    reason: str | None
    responses: int
    failures: int
    """Responses whose reward could not be computed."""
    reward: float | None


@dataclass(frozen=True, slots=True)
class StepTotals:
    """A committed step."""

    step: int
    trained: int
    failed: int
    dropped: int
    responses: int
    failures: int
    reward: float | None
    """Mean over the groups that have one."""


_OF_GROUP = (
    ("step", "first"), ("epoch", "first"), ("prompt_id", "first"), ("fate", "first"), ("reason", "first"),
    ("sample_index", "count"), ("failure_kind", "count"), ("reward", "mean"),
)  # fmt: skip
_COLUMNS = ["group_id", *(name for name, _ in _OF_GROUP)]
_TABLE = f"""
create table if not exists settled ({", ".join(field.name for field in fields(Settled))},
primary key (step, place)) without rowid;
create index if not exists by_prompt on settled (prompt_id);
"""
_STEPS = """
select step, sum(fate = 'trained'), sum(fate = 'failed'), sum(fate = 'dropped'), sum(responses), sum(failures),
avg(reward) from settled group by step having step > ? order by step
"""


_AT_ONCE = 200
"""Steps taken in by one transaction."""
_FAST = "pragma synchronous = off; pragma cache_size = -65536;"
"""Nothing is lost with an index, so nobody waits for the disk; and the part for prompts is filled in any order."""


class History:
    """Questions about the steps up to `steps`, the last one that the manifest knows."""

    def __init__(self, database: sqlite3.Connection, storage: Storage, steps: int) -> None:
        self._database, self._steps = database, steps
        database.executescript(_TABLE)
        (known,) = database.execute("select coalesce(max(step), 0) from settled").fetchone()
        for first in range(known + 1, steps + 1, _AT_ONCE):
            with database:  # these steps or nothing
                for step in range(first, min(first + _AT_ONCE, steps + 1)):
                    self._take_in(storage, step)

    def totals(self, last: int) -> list[StepTotals]:
        """The last so many steps, in order."""
        return [StepTotals(*row) for row in self._database.execute(_STEPS, (self._steps - last,))]

    def of_prompt(self, prompt_id: str) -> list[Settled]:
        """Every group that answered this prompt, in the order of steps."""
        found = self._database.execute("select * from settled where prompt_id = ? order by step, place", (prompt_id,))
        return [Settled(*row) for row in found]

    def _take_in(self, storage: Storage, step: int) -> None:
        rows = [[*found] for found in _settled(rollouts.table(storage, step, _COLUMNS))]
        self._database.executemany(f"insert into settled values ({','.join('?' * len(fields(Settled)))})", rows)


@contextmanager
def opened(storage: Storage, steps: int) -> Iterator[History]:
    """The index of a run directory whose last committed step is `steps`."""
    database = _connected(storage)
    try:
        yield History(database, storage, steps)
    finally:
        database.close()


def _connected(storage: Storage) -> sqlite3.Connection:
    """On disk if that can be written, else in memory. An index that is damaged, or of another version, is replaced."""
    if storage.local is None:
        return sqlite3.connect(":memory:")
    path = storage.local / NAME
    for _ in range(2):
        with suppress(sqlite3.Error):
            database = sqlite3.connect(path, timeout=60.0)
            database.executescript(_FAST + _TABLE)
            columns = [row[1] for row in database.execute("pragma table_info(settled)")]
            if columns == [field.name for field in fields(Settled)]:
                return database
            database.close()
        with suppress(OSError):
            path.unlink()
    return sqlite3.connect(":memory:")


def _settled(table: pa.Table) -> Iterator[tuple]:
    """Rows of `Settled`, in the order of the file."""
    by_group = table.group_by("group_id", use_threads=False).aggregate(list(_OF_GROUP))
    names = ["step_first", "epoch_first", "prompt_id_first", "group_id", "fate_first", "reason_first"]
    numbers = ["sample_index_count", "failure_kind_count", "reward_mean"]
    for place, (step, *rest) in enumerate(zip(*(by_group[n].to_pylist() for n in names + numbers), strict=True)):
        yield step, place, *rest
