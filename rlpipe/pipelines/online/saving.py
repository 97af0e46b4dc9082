"""Checkpoints of an RL stage: all trained roles, and what the driver knows, under one manifest.

checkpoints/step-NNNNNN/
  policy/, critic/    what each rank of a role needs to go on: weights, optimizer, step count, random state
  model/ or adapter/  the policy's weights, as transformers, PEFT and vLLM load them
  state.json          the KL controller, where the ledger and its cursor stood, the weight version, the evaluation

Training waits while the files are written, which goes to the memory of the operating system as far as that has room.
Reading them again for the manifest, the way to the disk, and the name come beside the next steps.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlpipe.data import remote
from rlpipe.ledger.ledger import Ledger
from rlpipe.observe.events import EventLog
from rlpipe.pipelines import checkpoints
from rlpipe.pipelines.online.beside import Beside
from rlpipe.recipe.roles import PolicyTraining
from rlpipe.runtime.handle import Handle, Within, results
from rlpipe.training.checkpoint import CheckpointMismatch
from rlpipe.training.critic import Critic
from rlpipe.training.policy import Policy

STATE = "state.json"
_SEEN_SECONDS = 90.0
"""Until what another node has written is seen here: NFS may go by a listing of a minute ago."""
_SAVE = {"policy": Policy.save_state, "critic": Critic.save_state}
_LOAD = {"policy": Policy.load_state, "critic": Critic.load_state}


class Stateful(Protocol):
    """A part of the driver that changes over a run."""

    def state(self) -> dict[str, float]: ...

    def load(self, state: dict[str, float]) -> None: ...


class Saving:
    """Writes the checkpoints of a stage, and goes on from the newest one."""

    def __init__(
        self,
        directory: Path,
        settings: PolicyTraining,
        last: int,
        roles: Mapping[str, Sequence[Handle[Any]]],
        driver: Mapping[str, Stateful],
        ledger: Ledger,
        export: Callable[[Path], None],
        layout: Mapping[str, int],
        seconds: float,
        events: EventLog,
        beside: Beside,
    ) -> None:
        """`directory` is the stage's, on storage that all ranks share, and `last` its last step. `driver`: what this
        process itself goes on from, by a name. `export` writes the
        policy into a folder for others to load. `layout`: the keys of the recipe, with their values, that have to be
        the same for whoever goes on from a checkpoint."""
        self._directory, self._settings, self._last = directory, settings, last
        self._roles = {name: ranks for name, ranks in roles.items() if name in _SAVE}
        self._driver, self._ledger, self._export, self._layout = dict(driver), ledger, export, dict(layout)
        self._within, self._events, self._beside = Within("train", seconds), events, beside
        self._beginning = self._driver_state()

    def stands(self, step: int) -> bool:
        """Whether there is a checkpoint of this step."""
        return checkpoints.place(self._directory, step).is_dir()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after this step."""
        every = self._settings.save_steps
        return bool(every and step and (step % every == 0 or step == self._last))

    def save(self, step: int, evaluation: Mapping[str, float] | None) -> None:
        """Write a checkpoint, which is `due`; it stands before the next one is begun, or after `finish`,
        and then older ones go. `evaluation` is what was found of the weights after this step, if they were evaluated.
        Raises what the one before failed of."""
        with self._events.phase("checkpoint", step, says="writing a checkpoint"):
            self._beside.finish()
            partial = self._directory / checkpoints.FOLDER / ".partial"
            shutil.rmtree(partial, ignore_errors=True)  # what a run that was killed had begun to write
            partial.mkdir(parents=True)
            self._all_ranks(_SAVE, partial)
            self._require_seen(partial)
            self._export(partial)
            state = self._state(step, evaluation)
            (partial / STATE).write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")
            spared = self._best([state]) if self._settings.load_best_model_at_end else None
            keep, directory = self._settings.save_total_limit, self._directory
            self._beside.start(lambda: checkpoints.commit(partial, directory, step, keep, spared))

    def finish(self) -> None:
        """All that was written stands. Raises what it failed of."""
        self._beside.finish()

    def load(self) -> int:
        """Put everything back to where the newest whole checkpoint was written; returns its step, 0 without one.

        Raises `CheckpointMismatch` if the recipe has another layout than the one that wrote it, and `LedgerError` if
        the ledger does not reach that far.
        """
        self.finish()
        checkpoints.set_damaged_aside(self._directory)
        folder = checkpoints.newest(self._directory)
        if folder is None:
            self._load_driver(self._beginning)
            return 0
        state = _read(folder)
        checkpoints.check_layout(folder, state["layout"], self._layout)
        self._ledger.require(state["step"], f"the checkpoint {folder}")
        self._all_ranks(_LOAD, folder)
        self._load_driver(state["driver"])
        return state["step"]

    def choose(self) -> None:
        """Where the recipe asks for it, give the policy the weights of the best checkpoint. Raises `CheckpointMismatch`
        if that is damaged."""
        self.finish()
        if not self._settings.load_best_model_at_end:
            return
        best, metric = self._best(), self._settings.metric_for_best_model
        self._events.note(f"the result is the model of step {best}: no checkpoint has a higher {metric}")
        if best != self._last:
            folder = checkpoints.place(self._directory, best)
            checkpoints.require_whole(folder)
            self._all_ranks({"policy": Policy.load_state}, folder)

    def _best(self, coming: Sequence[dict[str, Any]] = ()) -> int:
        """The step whose evaluation has the highest metric, of the checkpoints that stand and those that come; the
        first of several. NaN is below everything, and so is what was not evaluated."""
        states = [*map(_read, checkpoints.standing(self._directory)), *coming]
        metric = self._settings.metric_for_best_model
        values = {state["step"]: (state["evaluation"] or {}).get(metric, math.nan) for state in states}
        return max(values, key=lambda step: -math.inf if math.isnan(values[step]) else values[step])

    def _state(self, step: int, evaluation: Mapping[str, float] | None) -> dict[str, Any]:
        return {
            "step": step,
            "version": step,
            "driver": self._driver_state(),
            "ledger": self._ledger.state(),
            "evaluation": None if evaluation is None else dict(evaluation),
            "layout": self._layout,
        }

    def _driver_state(self) -> dict[str, dict[str, float]]:
        return {name: part.state() for name, part in self._driver.items()}

    def _load_driver(self, state: Mapping[str, dict[str, float]]) -> None:
        for name, part in self._driver.items():
            part.load(state[name])

    def _require_seen(self, folder: Path) -> None:
        """What every rank wrote is here: one on a node that came later may have written it to a disk of its own. Raises
        `CheckpointMismatch`."""
        until = time.monotonic() + _SEEN_SECONDS
        for name, ranks in self._roles.items():
            while (seen := len(list((folder / name).glob("random-*-of-*.pt")))) < len(ranks):
                if time.monotonic() > until:
                    raise CheckpointMismatch(
                        f"{len(ranks)} ranks of {name} have written their state to {folder / name}, and this process "
                        f"sees that of {seen}: the run directory is not on storage that all nodes share. Resume the "
                        f"run on nodes that share it (--run-dir; of a run in an object store, {remote.WORK})"
                    )
                time.sleep(0.2)

    def _all_ranks(self, methods: Mapping[str, Callable[..., None]], folder: Path) -> None:
        """Collective in each role; all are under way before one is waited for."""
        calls = [
            rank.call(self._within, method, str(folder / name))
            for name, method in methods.items()
            for rank in self._roles.get(name, ())
        ]
        results(calls)


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATE).read_text(encoding="utf-8"))
