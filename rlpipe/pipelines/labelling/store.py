"""What was asked and answered, durably and once, by key.

    PHASE/pass-000001/     one ledger over the prompts that had no answer when the pass began
        prompts.json       their ids
        ledger/, rollouts/ as of a run (ledger.ledger, observe.rollouts)

A pass that was broken off goes on, if all it asks is still wanted; what it has committed counts in any case. What is
wanted and stands in no pass gets a new one. So a run that is started again asks nothing twice, and one whose recipe or
files were edited asks what that concerns.
"""

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rlpipe.data.flow import Group, Prompt
from rlpipe.data.group_table import groups_of
from rlpipe.data.storage import Storage
from rlpipe.ledger.book import LedgerError
from rlpipe.ledger.ledger import Ledger
from rlpipe.observe import rollouts
from rlpipe.observe.rollouts import Fate

PROMPTS = "prompts.json"


@dataclass(frozen=True, slots=True)
class Pass:
    """One ledger, and the ids of the prompts that it is over."""

    ledger: Ledger
    prompt_ids: tuple[str, ...]

    @property
    def total(self) -> int:
        return len(self.prompt_ids)


class Store:
    """The passes of one phase. `rewards` are the names of the mix's components."""

    def __init__(
        self,
        run: Storage,
        phase: str,
        rewards: Sequence[str],
        lease_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._run, self._phase = run, phase
        self._rewards, self._lease_seconds, self._clock = tuple(rewards), lease_seconds, clock
        self.failed: set[str] = set()
        """Prompts of which `found` has seen that nothing came of them in an earlier run."""

    def found(self, prompts: Sequence[Prompt]) -> dict[str, Group]:
        """The committed answers to these, by prompt id. A group of which nothing could be judged is none: it is asked
        again. Raises `LedgerError` for a file that is not what was written."""
        by_id = {prompt.prompt_id: prompt for prompt in prompts}
        groups: dict[str, Group] = {}
        for name in self._passes():
            storage = self._run.folder(name)
            for step in rollouts.steps(storage):
                table = _table(storage, step)
                fates = list(zip(table["prompt_id"].to_pylist(), table["fate"].to_pylist(), strict=True))
                self.failed |= {prompt_id for prompt_id, fate in fates if fate == Fate.FAILED}
                wanted = [prompt_id in by_id and fate == Fate.TRAINED for prompt_id, fate in fates]
                groups |= {g.prompt.prompt_id: g for g in groups_of(table.filter(wanted), by_id.__getitem__)}
        return groups

    def next_pass(self, prompts: Sequence[Prompt], settled: Collection[str]) -> Pass | None:
        """A pass over those of `prompts` that are not `settled`, to be closed by its ledger: the one that was broken
        off, or a new one. None if nothing is left."""
        by_id = {prompt.prompt_id: prompt for prompt in prompts}
        missing = [prompt for prompt in prompts if prompt.prompt_id not in settled]
        if not missing:
            return None
        passes = self._passes()
        if passes and (again := self._again(self._run.folder(passes[-1]), by_id)):
            return again
        number = int(passes[-1].rpartition("-")[2]) + 1 if passes else 1
        storage = self._run.folder(f"{self._phase}/pass-{number:06d}")
        storage.write(PROMPTS, json.dumps([prompt.prompt_id for prompt in missing]).encode())
        return self._open(storage, missing)

    def _again(self, storage: Storage, by_id: dict[str, Prompt]) -> Pass | None:
        """The pass, unless it is done or asks what nobody wants any more."""
        ids = json.loads(storage.read(PROMPTS))
        if not set(ids) <= by_id.keys():
            return None
        opened = self._open(storage, [by_id[prompt_id] for prompt_id in ids])
        if committed(opened.ledger) == opened.total:
            opened.ledger.close()
            return None
        return opened

    def _open(self, storage: Storage, prompts: list[Prompt]) -> Pass:
        ledger = Ledger(storage, _Once(prompts), self._rewards, self._lease_seconds, self._clock)
        return Pass(ledger, tuple(prompt.prompt_id for prompt in prompts))

    def _passes(self) -> list[str]:
        """Of each the list of its prompts was written before anything else."""
        return [name.removesuffix(f"/{PROMPTS}") for name in self._run.names(f"{self._phase}/pass-*/{PROMPTS}")]


def _table(storage: Storage, step: int) -> pa.Table:
    try:
        return rollouts.table(storage, step)
    except rollouts.Damaged as error:
        raise LedgerError(
            f"{error}. Restore the file, or remove {storage}: then what stands there is asked again."
        ) from error


def committed(ledger: Ledger) -> int:
    """Prompts whose answers are committed, whether they could be judged or not."""
    counts = ledger.counts()
    return sum(counts[fate] for fate in Fate)


class _Once:
    """Draws each prompt once, in order."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._prompts, self._position = prompts, 0
        self._by_id = {prompt.prompt_id: prompt for prompt in prompts}

    def draw(self, count: int) -> list[tuple[int, Prompt]]:
        drawn = self._prompts[self._position : self._position + max(0, count)]
        self._position += len(drawn)
        return [(0, prompt) for prompt in drawn]

    def prompt(self, prompt_id: str) -> Prompt:
        return self._by_id[prompt_id]

    def state(self) -> dict[str, Any]:
        return {"position": self._position}

    def load(self, state: dict[str, Any]) -> None:
        self._position = state["position"]
