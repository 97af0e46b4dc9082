"""The durable record of which prompts were handed out, answered and trained, with the answers: exactly once, whatever
is killed when.

    cursor -> lease -> append -> take -> commit          states: book.py

    ledger/manifest-NUMBER.json     the truth: cursor, what is in flight and where, last committed step, totals
    ledger/segment-….arrow          answers whose step is not committed
    rollouts/step-NNNNNN.parquet    answers of committed steps, in the order of training

What a manifest names is durable before it is, and what a manifest does not name was never acknowledged: after a kill at
any instruction the present manifest is a whole state, and whatever else lies there is swept away. An answer stands in
one place: a commit writes the step's file, then the manifest that no longer needs the segments, and removes them last.

A change costs what is in flight, never what is done: a manifest's size does not depend on the length of the run.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any, Protocol

from rlpipe.data.flow import Failure, Group, Prompt
from rlpipe.data.group_table import groups_of
from rlpipe.data.storage import PARTIAL, Storage
from rlpipe.ledger.book import Appended, Book, Drawn, Lease, LedgerError
from rlpipe.ledger.lock import here, locked
from rlpipe.ledger.manifests import FOLDER, Manifests
from rlpipe.ledger.segments import Damaged, Segments
from rlpipe.observe import rollouts
from rlpipe.observe.rollouts import Fate, Record

logger = logging.getLogger(__name__)


class Cursor(Protocol):
    """Where prompts come from: `data.cursor.PromptCursor`."""

    def draw(self, count: int) -> list[tuple[int, Prompt]]: ...

    def prompt(self, prompt_id: str) -> Prompt: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


class Ledger:
    """The single writer; a context manager. Opening one that is there goes on where it stood, with the cursor put
    there, too.

    Raises `InUse` while another process works on it, `Replaced` (in any method) once another one has taken it over, and
    `DataError` for other prompts than those it is about. An OSError of the storage leaves what was acknowledged; the
    ledger must be opened again after it.
    """

    def __init__(
        self,
        storage: Storage,
        cursor: Cursor,
        rewards: Sequence[str],
        lease_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`storage` is the run directory; `rewards` are the names of the mix's components."""
        self._storage, self._cursor, self._rewards = storage, cursor, tuple(rewards)
        self._lease_seconds, self._clock = lease_seconds, clock
        self._folder = storage.folder(FOLDER)
        self._book, self._segments = Book(clock), Segments(self._folder, rewards)
        self._checksums: dict[str, int] = {}
        self.step = 0
        """The last committed step; 0 at the beginning."""
        with ExitStack() as stack:
            stack.enter_context(locked(self._folder))
            self._manifests = Manifests(storage)
            if self._manifests.newest is not None:
                self._restore(self._manifests.newest)
            self._put()
            self._sweep()
            self._held = stack.pop_all()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write."""
        self._held.close()

    def lease(self, ahead: int) -> list[Lease]:
        """Leases for whatever is missing of the next `ahead` prompts that are not taken: expired ones first, then the
        cursor's. None where all of them are answered or leased."""
        expired, undrawn = self._book.missing(ahead)
        fresh = self._book.draw(self._cursor.draw(undrawn))
        deadline = self._clock() + self._lease_seconds
        leases = [self._book.grant(drawn, deadline) for drawn in expired + fresh]
        if leases:
            self._put()
        return leases

    def hold(self, lease_ids: Collection[str]) -> None:
        """These are being worked on, and their leases begin anew, also if they had run out; nobody works on any other,
        and its prompt can be leased again at once. Not durable, as nobody holds a lease once this writer is gone. Ids
        that are no leases are ignored."""
        self._book.hold(lease_ids, self._clock() + self._lease_seconds)

    def ask_all_again(self) -> None:
        """As `ask_again`, of every answer that is not taken."""
        self.ask_again(self._book.answered())

    def append(self, groups: Sequence[Group]) -> list[Appended]:
        """Hand in answers to leases; together they cost hardly more than one. Those `STORED` are durable when this
        returns, and will be trained."""
        verdicts = self._book.judge(groups)
        stored = [group for group, verdict in zip(groups, verdicts, strict=True) if verdict is Appended.STORED]
        if stored:
            name, checksum = self._segments.write(stored, self._manifests.next)
            self._checksums[name] = checksum
            self._book.answer(stored, name)
            self._put()
        return verdicts

    def take(self, count: int) -> list[Group] | None:
        """The next `count` groups in cursor order, or None while one of them is still missing. They stay taken until
        `commit`. While some are taken, only as many more can be as were dropped of them."""
        return self._book.take(count)

    def lacking(self, count: int) -> set[str]:
        """Which of the next `count` groups are missing, by the ids of their leases."""
        return self._book.lacking(count)

    @property
    def taken(self) -> int:
        """How many groups are taken and not dropped."""
        return len(self._book.taken)

    def drop(self, group_ids: Sequence[str], reason: str) -> None:
        """These of the taken groups are not to be trained on, and not handed out again. Durable with the step's
        commit: until then a restart finds them completed, and whoever dropped them does so again."""
        self._book.drop(group_ids, reason)
        logger.info("dropped %s: %s", ", ".join(group_ids), reason)

    def give_back(self) -> None:
        """What is taken and not committed can be taken again, what was dropped of it, too."""
        self._book.give_back()

    def ask_again(self, group_ids: Sequence[str]) -> None:
        """Forget the answers of these groups, durably: their prompts are to be asked again. Of those that are taken by
        whoever opens the ledger next; this writer has only to close it."""
        before = self._book.segments
        self._book.ask_again(group_ids)
        self._put()
        self._discard(before - self._book.segments)

    def ask_failed_again(self) -> None:
        """As `ask_again`, of every answer of which a part has failed, taken or not."""
        self.ask_again(self._book.failed())

    def commit(self, step: int, advantages: Sequence[float] | None = None) -> None:
        """What was taken has been trained, in this step. `advantages`: one for each response of the taken groups, in
        their order, as the rollouts tell them."""
        if not self._book.taken:
            raise LedgerError(f"step {step} commits, but nothing is taken: call take(count) first")
        if step != self.step + 1:
            raise LedgerError(f"step {step} commits, but step {self.step} was the last one committed")
        records = _records(self._book.taken, self._book.dropped, advantages)
        self._write_step(step, records)
        before = self._book.segments
        self._book.commit({record.group.group_id: record.fate for record in records})
        self.step = step
        self._put()
        self._discard(before - self._book.segments)

    def committed(self, step: int) -> tuple[list[Group], list[Group]]:
        """The groups that a committed step was trained on, in order, and those that it dropped. Raises `LedgerError` if
        its file is damaged or gone."""
        try:
            table = rollouts.table(self._storage, step)
        except (FileNotFoundError, rollouts.Damaged) as error:
            raise LedgerError(
                f"what step {step} was trained on cannot be read: {error}. It was there when the step was committed: "
                "restore the file, or start a new run."
            ) from error
        fates = dict(zip(table["group_id"].to_pylist(), table["fate"].to_pylist(), strict=True))
        trained, dropped = [], []
        for group in groups_of(table, self._cursor.prompt):
            (dropped if fates[group.group_id] == Fate.DROPPED else trained).append(group)
        return trained, dropped

    def require(self, step: int, who: str) -> None:
        """Raises `LedgerError` if this step is not committed, of which `who` knows."""
        if step > self.step:
            raise LedgerError(
                f"{who} is of step {step}, and {self._folder} knows of {self.step} committed steps only: part of it is "
                "missing. Bring the whole run directory back, or start a new run."
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint says of it: the last committed step, the present manifest's number, and the cursor."""
        return {"step": self.step, "manifest": self._manifests.number, "cursor": self._cursor.state()}

    def counts(self) -> dict[str, int]:
        """Prompts by state: pending (expired and not leased again), leased, completed, trained, failed, dropped."""
        return self._book.counts()

    def _write_step(self, step: int, records: Sequence[Record]) -> None:
        """The step's file. One that is there already is what a kill before the manifest has left, unless another writer
        is at work."""
        data = rollouts.encoded(step, records, self._rewards)
        try:
            self._storage.create(rollouts.name_of(step), data)
        except FileExistsError:
            self._manifests.require_present()
            self._storage.write(rollouts.name_of(step), data)

    def _put(self) -> None:
        self._manifests.put(
            {
                "writer": here() | {"time": round(self._clock(), 3)},
                "cursor": self._cursor.state(),
                "step": self.step,
                "totals": self._book.totals,
                "segments": {name: self._checksums[name] for name in sorted(self._book.segments)},
                "in_flight": self._book.rows(),
            }
        )

    def _restore(self, manifest: dict[str, Any]) -> None:
        self._cursor.load(manifest["cursor"])
        self.step, self._checksums = manifest["step"], manifest["segments"]
        for fate, by_epoch in manifest["totals"].items():
            self._book.totals[fate] = Counter({int(epoch): count for epoch, count in by_epoch.items()})
        self._book.restore(manifest["in_flight"], self._cursor.prompt)
        for name, checksum in manifest["segments"].items():
            self._read(name, checksum)

    def _read(self, name: str, checksum: int) -> None:
        try:
            groups = self._segments.read(name, checksum, self._cursor.prompt)
        except Damaged as damage:
            lost = self._book.forget(name)
            logger.warning("%s: the %d prompts answered there are asked again", damage, lost)
            return
        self._book.answer([group for group in groups if self._book.awaits(group, name)], name)

    def _sweep(self) -> None:
        """Remove what a kill has left: answers that were never acknowledged, and half-written files."""
        named = self._book.segments
        self._segments.remove([name for name in self._segments.names() if name not in named])
        self._storage.delete(rollouts.name_of(self.step + 1))
        for folder in (FOLDER, rollouts.FOLDER):
            for name in self._storage.names(f"{folder}/.*{PARTIAL}"):
                self._storage.delete(name)

    def _discard(self, segments: set[str]) -> None:
        """All their answers stand in files of steps now."""
        self._segments.remove(sorted(segments))
        for name in segments:
            del self._checksums[name]


def _records(taken: Sequence[Drawn], dropped: Sequence[Drawn], advantages: Sequence[float] | None) -> list[Record]:
    """Those trained on, in order, and behind them those dropped."""
    sizes = [len(drawn.group.outcomes) for drawn in taken]
    given = iter([None] * sum(sizes) if advantages is None else advantages)
    records = [_record(drawn, list(islice(given, size))) for drawn, size in zip(taken, sizes, strict=True)]
    return records + [Record(d.group, d.epoch, [0.0] * len(d.group.outcomes), Fate.DROPPED, d.reason) for d in dropped]


def _record(drawn: Drawn, advantages: list[float | None]) -> Record:
    failures = [outcome for outcome in drawn.group.outcomes if isinstance(outcome, Failure)]
    if len(failures) < len(drawn.group.outcomes):
        return Record(drawn.group, drawn.epoch, advantages)
    return Record(drawn.group, drawn.epoch, advantages, Fate.FAILED, f"no reward: {failures[0].message}")
